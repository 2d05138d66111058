"""CPU speed of the codec against its rivals, per core and on all cores, in one run.

    python bench/codec_speed.py [--megabytes 512] [--repeats 5]

A Gaussian bf16 matrix (sigma 0.02, fresh random numbers) is encoded and decoded by tersor
(numba), by zipnn and by zstandard at level 3, and a slice of it by DFloat11's own encoder, in
turn, `repeats` times; medians are printed in MB/s of bfloat16, bits per weight with all index
and tables. The process pins itself to one core for the per-core figures. Rivals that are not
installed are left out and named: pip install zipnn zstandard; pip install --no-deps dfloat11 dahuffman
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.codec import BACKEND, Packed, decode, encode

U8 = NDArray[np.uint8]
Rival = tuple[str, Callable[[U8], Any], Callable[[Any], Any], Callable[[Any], int]]
COLUMNS = 4096


def gaussian(megabytes: int) -> U8:
    """The bytes of a bf16 matrix of 4096 columns, rounded to nearest even from float32."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(8)))
    weights = np.empty(megabytes * 500_000 // COLUMNS * COLUMNS, np.uint16)
    for start in range(0, weights.size, 1 << 24):
        piece = rng.standard_normal(min(1 << 24, weights.size - start), np.float32) * np.float32(0.02)
        bits = piece.view(np.uint32)
        weights[start : start + piece.size] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return weights.view(np.uint8)


def tersor_rival() -> Rival:
    """This package."""

    def compress(data: U8) -> Packed:
        return encode(data, "BF16", (data.size // 2 // COLUMNS, COLUMNS))

    return f"tersor ({BACKEND})", compress, decode, lambda packed: packed.nbytes


def zipnn_rival() -> Rival:
    """zipnn's native coder on one thread."""
    from zipnn import ZipNN

    coder = ZipNN(bytearray_dtype="bfloat16", threads=1)
    # zipnn reorders its input in place: give it a copy, and do not time the copy
    return "zipnn", lambda data: coder.compress(data), coder.decompress, len


def zstd_rival() -> Rival:
    """zstandard at level 3 on the plain bytes."""
    import zstandard

    return (
        "zstandard -3",
        lambda data: zstandard.ZstdCompressor(level=3).compress(data.data),
        lambda blob: zstandard.ZstdDecompressor().decompress(blob),
        len,
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of wall time, and what `work` returned."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure(rival: Rival, data: U8, repeats: int) -> tuple[float, float, float]:
    """Median MB/s encoding and decoding, and bits per weight; the result is compared with the input."""
    name, compress, decompress, size = rival
    into, back = [], []
    compress(bytearray(data[: COLUMNS * 64]) if name == "zipnn" else data[: COLUMNS * 64])  # compile, load
    for _ in range(repeats):
        given = bytearray(data) if name == "zipnn" else data
        seconds, packed = timed(lambda given=given: compress(given))
        into.append(data.size / seconds / 1e6)
        seconds, restored = timed(lambda packed=packed: decompress(packed))
        back.append(data.size / seconds / 1e6)
        assert np.array_equal(np.frombuffer(restored, np.uint8), data), f"{name} did not give the data back"
        del restored
    return statistics.median(into), statistics.median(back), 8 * size(packed) / (data.size / 2)


def dfloat11_encoding(data: U8, weights: int = 1 << 20) -> float:
    """MB/s of DFloat11's own encoder on the first `weights` weights."""
    import torch

    # its encoder alone: the package itself wants CuPy, which needs a GPU
    package = importlib.util.find_spec("dfloat11")
    if package is None or not package.submodule_search_locations:
        raise ImportError(name="dfloat11")
    path = Path(package.submodule_search_locations[0]) / "dfloat11_utils.py"
    spec = importlib.util.spec_from_file_location("dfloat11_utils", path)
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)

    slice_ = torch.from_numpy(data[: 2 * weights].copy().view(np.int16)).view(torch.bfloat16)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seconds, _ = timed(
            lambda: theirs.encode_weights(
                [slice_], theirs.get_32bit_codec(theirs.get_codec(slice_)[1])[0], 8, 512
            )
        )
    return 2 * weights / seconds / 1e6


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512, help="size of the tensor")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are printed")
    options = parser.parse_args()
    data = gaussian(options.megabytes)
    cores = sorted(os.sched_getaffinity(0))
    print(f"{data.size / 1e6:.0f} MB of bfloat16, {options.repeats} rounds, MB/s of bfloat16\n")
    print("| coder | cores | encode MB/s | decode MB/s | bits per weight |\n| --- | --- | --- | --- | --- |")
    os.sched_setaffinity(0, cores[:1])
    os.environ["TERSOR_THREADS"] = "1"
    one = (0.0, 0.0)
    for make in (tersor_rival, zipnn_rival, zstd_rival):
        try:
            rival = make()
        except ImportError as error:
            print(f"| {make.__name__} | not installed: {error.name} | | | |")
            continue
        into, back, bits = measure(rival, data, options.repeats)
        one = (into, back) if make is tersor_rival else one
        print(f"| {rival[0]} | 1 | {into:.0f} | {back:.0f} | {bits:.3f} |", flush=True)
    try:
        print(f"| DFloat11's encoder, 1 M weights | 1 | {dfloat11_encoding(data):.2f} | | |")
    except ImportError as error:
        print(f"| DFloat11's encoder | not installed: {error.name} | | | |")
    os.sched_setaffinity(0, cores)
    for count in range(2, len(cores) + 1):
        os.environ["TERSOR_THREADS"] = str(count)
        into, back, bits = measure(tersor_rival(), data, options.repeats)
        print(f"| {tersor_rival()[0]} | {count} | {into:.0f} | {back:.0f} | {bits:.3f} |")
        print(f"\nscaling to {count} cores: encode {into / one[0]:.2f}x, decode {back / one[1]:.2f}x")


if __name__ == "__main__":
    main()
