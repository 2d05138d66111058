"""Every build of the product for many tokens, against cuBLAS and against decoding: how `tile.variant_for` was chosen.

python bench/sweep_tile.py [--replays 11] [--shapes 0,3] [--tokens 32,256] [--json FILE]

Each build is checked before it is timed; one that is wrong is reported, with where, and left out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from tersor.kernels import measure
from tersor.kernels.bench import SHAPES, geometric_mean
from tersor.kernels.fused.device import Matrix
from tersor.kernels.launcher import shared_limit
from tersor.kernels.tile.device import tile_linear
from tersor.kernels.tile.variant import VARIANTS, Variant, variant_for
from tersor.kernels.window import device as window
from tersor.kernels.window.layout import Geometry

TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def builds(tokens: int) -> list[Variant]:
    """Worth trying: those of the smallest tile that holds the tokens, for many tokens of the two largest."""
    sizes = [n for n in VARIANTS if tokens <= n < 2 * tokens] or list(VARIANTS)[-2:]
    return [build for n in sizes for build in VARIANTS[n]]


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


def decoded(x: torch.Tensor, matrix: Matrix[Geometry]) -> torch.Tensor:
    """The way for GPUs without this product."""
    return linear(x, window.decode(matrix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replays", type=int, default=11)
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    measure.warm_up(device)
    results: list[dict[str, object]] = []
    ratios: dict[int, dict[str, list[float]]] = {}
    for rows, cols in (SHAPES[int(i)] for i in args.shapes.split(",")):
        weight = (torch.randn(rows, cols, device=device) * 0.02).bfloat16()
        matrix = window.pack(weight)
        ours = [window.pack(weight) for _ in range(measure.copies(matrix.stages.numel()))]
        plain = [weight.clone() for _ in range(measure.copies(2 * weight.numel()))]
        for tokens in map(int, args.tokens.split(",")):
            x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
            good: list[Variant] = []
            for build in builds(tokens):
                if build.shared(matrix.geometry) > shared_limit(device):
                    print(f"  does not fit: {build}")
                elif complaint := wrong(tile_linear(x, matrix, None, build), x, weight):
                    print(f"  {rows} x {cols}, m = {tokens}, {build}: {complaint}", flush=True)
                else:
                    good.append(build)
            calls = [[partial(tile_linear, x, m, None, build) for m in ours] for build in good]
            rivals = [partial(linear, x, w) for w in plain], [partial(decoded, x, m) for m in ours]
            cublas, decode, *times = measure.seconds(*rivals, *calls, replays=args.replays)
            print(
                f"{rows} x {cols}, m = {tokens}: cuBLAS {cublas * 1e6:.1f} us, decoding {cublas / decode:.2f}"
            )
            for build, seconds in zip(good, times, strict=True):
                chosen = "*" if build == variant_for(tokens, Geometry(rows, cols)) else " "
                print(f"  {cublas / seconds:5.2f} {seconds * 1e6:8.1f} us {chosen} {build}", flush=True)
                own = ratios.setdefault(tokens, {})
                own.setdefault(chosen + str(build), []).append(cublas / seconds)
                results.append(
                    {"rows": rows, "cols": cols, "tokens": tokens, "cublas": cublas, "decode": decode}
                    | {"seconds": seconds, "build": asdict(build)}
                )
    for tokens, own in ratios.items():
        print(f"m = {tokens}: geometric means, worst")
        for name, values in own.items():
            print(f"  {geometric_mean(values):6.3f} {min(values):6.3f} {name}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
