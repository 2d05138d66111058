"""Every build of `huffman_decode` worth trying on this GPU: how `Decoding.fitting` was chosen.

python bench/sweep_huffman.py [--replays 11] [--json FILE]

Matrices one by one, and the linear layers of an 8B model's block in one launch; each result is checked before it is
timed. `overlap` lets a launch be placed while the one before ends, `early` lets it read its streams then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from tersor.format.dtypes import KINDS
from tersor.kernels import measure
from tersor.kernels.huffman import device as huffman
from tersor.kernels.huffman.device import Decoding
from tersor.kernels.launcher import shared_limit

FUSED = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # qkv, o, gate and up, down
SEPARATE = (
    *((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)),
    *((14336, 4096), (14336, 4096), (4096, 14336)),
)
CASES: dict[str, Sequence[tuple[int, int]]] = {
    "4096 x 4096": FUSED[1:2],
    "6144 x 4096": FUSED[:1],
    "28672 x 4096": FUSED[2:3],
    "4096 x 14336": FUSED[3:],
    "1024 x 4096": SEPARATE[1:2],
    "128256 x 4096": ((128256, 4096),),
    "block of 4, one launch": FUSED,
    "block of 7, one launch": SEPARATE,
}
_BUILDS = (8, 9, 10, 11, 12, 13, 14, 16)
_KIND, _SLOT = KINDS["BF16"], 2048
VARIANTS = [
    *(Decoding(_KIND, warps, _SLOT, overlap=True) for warps in _BUILDS),
    *(Decoding(_KIND, warps, _SLOT, overlap=True, early=True) for warps in _BUILDS),
    Decoding(_KIND, 12, _SLOT, overlap=False),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replays", type=int, default=11)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    measure.warm_up(device)
    fitting = [v for v in VARIANTS if v.shared <= shared_limit(device)]
    rows = []
    for name, shapes in CASES.items():
        weights = [(torch.randn(shape, device=device) * 0.02).bfloat16() for shape in shapes]
        stored = [huffman.encode(weight, "BF16") for weight in weights]
        out = [torch.empty_like(weight) for weight in weights]
        for variant in fitting:
            for tensor in out:
                tensor.view(torch.int16).fill_(-1)
            huffman.decode_many(stored, "BF16", out, variant)
            for tensor, weight in zip(out, weights, strict=True):
                same = torch.equal(tensor.view(torch.int16), weight.view(torch.int16))
                assert same, f"{variant}: {tuple(weight.shape)} does not decode to the original bits"
        copies = measure.copies(sum(one[0].numel() for one in stored))
        many = [stored] + [[(t.clone(), o.clone(), b) for t, o, b in stored] for _ in range(copies - 1)]
        torch.cuda.synchronize()  # `early` may not overlap what writes its streams
        calls = [[partial(huffman.decode_many, s, "BF16", out, v) for s in many] for v in fitting]
        times = measure.seconds(*calls, replays=args.replays)
        nbytes = sum(weight.nbytes for weight in weights)
        print(f"{name}: GB/s of bfloat16")
        for variant, seconds in zip(fitting, times, strict=True):
            rows.append({"case": name, **vars(variant), "seconds": seconds, "bytes": nbytes})
            flags = f"{'overlap' if variant.overlap else '':9}{'early' if variant.early else ''}"
            speed = f"{nbytes / seconds * 1e-9:7.0f}  {seconds * 1e6:8.1f} us"
            print(f"  {speed}  {variant.warps:3} warps  {flags}", flush=True)
        del weights, stored, out, many, calls
    for variant in fitting:
        total = [r for r in rows if all(r[k] == v for k, v in vars(variant).items())]
        four = [r for r in total if r["case"] in list(CASES)[:4]]
        speed = sum(r["bytes"] for r in four) / sum(r["seconds"] for r in four)
        print(f"block of 4, four launches: {speed * 1e-9:7.0f} GB/s  {variant}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
