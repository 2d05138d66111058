"""Make the golden files of one format version; refuses to touch those that exist.

    python tests/golden/make_golden.py

Weights come from integer arithmetic alone, so that no library's random numbers decide them: a
linear congruential generator, its bits counted (about normally distributed) for the exponent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from crafting import Tensor, file_bytes, write_model  # noqa: E402

BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}
SHAPE = (17, 257)  # two strips, two columns of tiles, every edge cut


def weights(dtype: str, shape: tuple[int, int] = SHAPE) -> Tensor:
    """A tensor of `dtype`: exponents around the middle, all other bits noise; the first elements are special."""
    state = 20240229
    data = bytearray()
    for i in range(shape[0] * shape[1]):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        spread, noise = (state >> 24 & 0xFFF).bit_count(), state >> 40
        if dtype in ("BF16", "F32"):
            mantissa = 7 if dtype == "BF16" else 23
            value = (
                (noise & 1) << mantissa + 8 | (110 + spread) << mantissa | noise >> 1 & (1 << mantissa) - 1
            )
        else:
            high = (noise & 1) << 7 | 30 + 2 * spread
            value = high if BYTES[dtype] == 1 else high << 8 | noise >> 1 & 0xFF
        if i < 8:  # 0, -0, denormals, infinities or NaN
            value = (0, 1, 1 << 8 * BYTES[dtype] - 1, -1, -2, -128, 127, 2)[i] % (1 << 8 * BYTES[dtype])
        data += value.to_bytes(BYTES[dtype], "little")
    return Tensor(dtype, shape, bytes(data))


def original(dtype: str) -> bytes:
    """The file that `DTYPE.safetensors` was made from: a matrix, and a small tensor that stays raw."""
    return file_bytes(
        {"weight": weights(dtype), "bias": Tensor("I16", (3,), b"\1\0\2\0\3\0")}, {"format": "pt"}
    )


def original_model(path: Path) -> Path:
    """The directory that `model` was made from: two shards with an index."""
    return write_model(
        path, [{"a.weight": weights("BF16")}, {"b.weight": weights("F16"), "c": Tensor("BOOL", (), b"\1")}]
    )


def main() -> None:
    """Write one file per dtype, and a directory."""
    from tempfile import TemporaryDirectory

    from tersor.pipeline.compress import compress

    if list(HERE.glob("*.safetensors")) or (HERE / "model").exists():
        raise SystemExit("golden files never change: a new format version makes new ones beside them")
    with TemporaryDirectory() as scratch:
        for dtype in BYTES:
            plain = Path(scratch) / f"{dtype}.safetensors"
            plain.write_bytes(original(dtype))
            compress(plain, HERE / plain.name)
        compress(original_model(Path(scratch) / "model"), HERE / "model")
    config = json.loads((HERE / "model" / "config.json").read_text())
    print("written by tersor", config["quantization_config"]["tersor_version"])


if __name__ == "__main__":
    main()
