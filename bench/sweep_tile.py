"""Every build of the product for many tokens, against cuBLAS and the other ways: how `tile.variant_for` was chosen.

python bench/sweep_tile.py [--replays 7] [--layouts fast,spqr] [--shapes 0,3] [--tokens 32,256] [--json FILE]
    [--wide 3]

Each build is checked before it is timed; one that is wrong is reported, with where, and left out. For many tokens only
`--wide` builds are tried, those that are reckoned to be the fastest.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from tersor.kernels import bench_spqr, measure
from tersor.kernels.bench import SHAPES, geometric_mean
from tersor.kernels.compiler import machine_code
from tersor.kernels.fused.device import Matrix, decode
from tersor.kernels.launcher import architecture, multiprocessors, shared_limit
from tersor.kernels.spqr import device as spqr
from tersor.kernels.spqr import linear as spqr_linear
from tersor.kernels.tile.device import kept_for, tile_linear
from tersor.kernels.tile.variant import VARIANTS, Build, fastest_first, fitting, variant_for
from tersor.kernels.window import device as window
from tersor.kernels.window import linear as window_linear

TOKENS = (16, 32, 64, 128, 256, 320, 512, 513, 576, 640, 700, 768, 900, 1024, 1300, 2048, 4096)
FEW: dict[str, tuple[Any, Any]] = {"fast": (window, window_linear), "spqr": (spqr, spqr_linear)}


def builds(tokens: int, matrix: Matrix[Any], device: torch.device, wide: int) -> list[Build]:
    """Worth trying: those of the smallest tile that holds the tokens, for many tokens `wide` of those for them."""
    if size := next((n for n in VARIANTS if tokens <= n), None):
        return list(fitting(size, matrix.geometry))
    return [*fastest_first(tokens, matrix.geometry, multiprocessors(device))[:wide]]


def sample(layout: str, rows: int, cols: int, device: torch.device) -> tuple[torch.Tensor, Matrix[Any]]:
    """Random weights and their packed form."""
    if layout == "spqr":
        own = bench_spqr.sample(rows, cols, bench_spqr.FOUR_BITS)
        return own.weight, own.matrix
    weight = (torch.randn(rows, cols, device=device) * 0.02).bfloat16()
    return weight, window.pack(weight)


def compile_all(tokens: list[int], matrix: Matrix[Any], device: torch.device, wide: int) -> None:
    """Every build, by all processors at once."""
    kept = kept_for(matrix.geometry, matrix.places, matrix.records)
    chosen = {
        build.keeping(min(build.kept, kept)) for m in tokens for build in builds(m, matrix, device, wide)
    }
    programs = {b.program(matrix.geometry) for b in chosen}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda program: machine_code(program, architecture(device)), programs))


def wrong(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> str:
    """Empty, or the largest error and where it is."""
    plain = linear(x, weight).float()
    error = (y.float() - plain).abs().nan_to_num(nan=float("inf"))
    worst, limit = float(error.max()), 0.03 * float(plain.abs().max())
    if worst <= limit:
        return ""
    token, row = divmod(int(error.argmax()), weight.shape[0])
    bad = int((error > limit).sum())
    return (
        f"WRONG: error {worst:.2e} at token {token}, row {row}; {bad} of {error.numel()} beyond {limit:.1e}"
    )


def few(layout: str, x: torch.Tensor, matrix: Matrix[Any]) -> partial[torch.Tensor] | None:
    """The product for few tokens, if it takes so many."""
    own, choice = FEW[layout]
    if x.shape[0] > choice.MAX_TOKENS:
        return None
    variant = choice.variant_for(
        x.shape[0], matrix.geometry, multiprocessors(x.device), shared_limit(x.device)
    )
    return partial(own.linear, x, matrix, None, variant)


def decoded(x: torch.Tensor, matrix: Matrix[Any]) -> torch.Tensor:
    """The way for GPUs without this product."""
    return linear(x, decode(matrix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replays", type=int, default=7)
    parser.add_argument("--layouts", default="fast,spqr")
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--wide", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    sizes = [int(m) for m in args.tokens.split(",")]
    measure.warm_up(device)
    results: list[dict[str, object]] = []
    ratios: dict[tuple[str, int], dict[str, list[float]]] = {}
    for layout in args.layouts.split(","):
        for number, (rows, cols) in enumerate(SHAPES[int(i)] for i in args.shapes.split(",")):
            weight, matrix = sample(layout, rows, cols, device)
            if number == 0:
                compile_all(sizes, matrix, device, args.wide)
            more = measure.copies(matrix.stages.numel()) - 1
            ours = [matrix] + [
                replace(matrix, stages=matrix.stages.clone(), records=matrix.records.clone())
                for _ in range(more)
            ]
            plain = [weight.clone() for _ in range(measure.copies(2 * weight.numel()))]
            for tokens in sizes:
                x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
                good: list[Build] = []
                for build in builds(tokens, matrix, device, args.wide):
                    if complaint := wrong(tile_linear(x, matrix, None, build), x, weight):
                        print(f"  {layout} {rows} x {cols}, m = {tokens}, {build}: {complaint}", flush=True)
                    else:
                        good.append(build)
                calls: list[list[Any]] = [[partial(linear, x, w) for w in plain]]
                calls += [[partial(decoded, x, m) for m in ours]]
                calls += [[partial(tile_linear, x, m, None, build) for m in ours] for build in good]
                if few(layout, x, matrix):
                    calls.append([few(layout, x, m) for m in ours])
                cublas, decode_time, *times = measure.seconds(*calls, replays=args.replays)
                chosen = variant_for(tokens, matrix.geometry, multiprocessors(device))
                names = [f"{'*' if build == chosen else ' '} {build}" for build in good]
                names += ["  the product for few tokens"] * (len(times) - len(good))
                print(
                    f"{layout} {rows} x {cols}, m = {tokens}: cuBLAS {cublas * 1e6:.1f} us, "
                    f"decoding {cublas / decode_time:.2f}"
                )
                for name, seconds in zip(names, times, strict=True):
                    print(f"  {cublas / seconds:5.2f} {seconds * 1e6:8.1f} us {name}", flush=True)
                    ratios.setdefault((layout, tokens), {}).setdefault(name, []).append(cublas / seconds)
                for build, seconds in zip(good, times, strict=False):
                    results.append(
                        {"layout": layout, "rows": rows, "cols": cols, "tokens": tokens, "cublas": cublas}
                        | {"decode": decode_time, "seconds": seconds, "build": vars(build)}
                    )
            del weight, matrix, ours, plain
    for (layout, tokens), own in ratios.items():
        print(f"{layout}, m = {tokens}: geometric means, worst")
        for name, values in own.items():
            print(f"  {geometric_mean(values):6.3f} {min(values):6.3f} {name}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
