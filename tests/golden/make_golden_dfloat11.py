"""Make dfloat11.npz, once: buffers from DFloat11's own encoder (0.5.0). python tests/golden/make_golden_dfloat11.py

The weights are integer arithmetic and few mantissas, so that the file stays small; two blocks of the stream, codes
of more than 8 bits, zeros of both signs, a denormal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
PATH = Path(__file__).parent / "dfloat11.npz"
COUNT = 14_500


def bits() -> NDArray[np.uint16]:
    """The weights' bit patterns."""
    state = 1
    made = []
    for _ in range(COUNT):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        noise = state >> 33
        rare = (noise & -noise).bit_length()  # 1 half of the time, 2 a quarter, ...
        exponent = 124 - rare - (noise >> 29 & 1) if noise else 0
        made.append((state >> 63) << 15 | exponent << 7 | (state >> 61 & 1) << 6)
    made[100:104] = [0x0000, 0x8000, 0x0001, 0x8040]
    return np.array(made, np.uint16)


def main() -> None:
    from dfloat11_official import encode

    if PATH.exists():
        sys.exit(f"{PATH} is there; golden files never change")
    weights = torch.from_numpy(bits()).view(torch.bfloat16)
    buffers = encode([weights[:5000], weights[5000:]]).buffers
    np.savez_compressed(PATH, **{name: tensor.numpy() for name, tensor in vars(buffers).items()})


if __name__ == "__main__":
    main()
