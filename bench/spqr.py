"""Quantised products against cuBLAS: python bench/spqr.py [--tokens 1,8] [--json FILE] [--sweep] [--sparse]."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from tersor.kernels import bench_spqr, measure
from tersor.kernels.bench import SHAPES, geometric_mean
from tersor.kernels.bench_spqr import FOUR_BITS, KINDS, THREE_BITS, Product
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import shared_limit
from tersor.kernels.spqr import device

_OUTLIER_TOKENS = (1, 8)  # for kinds that differ by their outliers only
_SWEPT_SHAPES = ((4096, 4096), (6144, 4096), (14336, 4096), (28672, 4096), (4096, 14336))
# Streaming warps, ring stages, blocks per multiprocessor; then spans of activations in shared memory, if any.
_FEW = ((8, 4, 2), (8, 4, 3), (10, 4, 2), (16, 4, 1), (20, 4, 1), (6, 4, 3), (6, 4, 4), (4, 4, 5), (8, 2, 3))
_SLICED = ((16, 4, 1, 4), (20, 4, 1, 4), (12, 4, 1, 7), (8, 4, 2, 2), (16, 4, 1, 2))
_BUILDS = {
    1: [Variant(1, *build) for build in _FEW],
    8: [Variant(8, *build) for build in _FEW + _SLICED],
    16: [
        Variant(16, *build)
        for build in ((16, 4, 1, 4), (16, 4, 1, 2), (12, 4, 1, 2), (20, 4, 1, 2), (8, 4, 2, 1))
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default=",".join(map(str, bench_spqr.TOKENS)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="every build worth trying instead")
    parser.add_argument("--sparse", action="store_true", help="the outliers alone instead")
    args = parser.parse_args()
    if args.sweep:
        found = sweep()
    elif args.sparse:
        found = sparse()
    else:
        found = products([int(t) for t in args.tokens.split(",")])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def products(tokens: Sequence[int]) -> list[dict[str, object]]:
    """The table of products."""
    seconds = bench_spqr.packing_seconds(28672, 4096)
    print(f"packing 28672 x 4096 from its stored arrays: {seconds * 1e3:.1f} ms")
    results: list[Product] = []
    for kind in KINDS:
        own = tokens if kind in (FOUR_BITS, THREE_BITS) else [m for m in tokens if m in _OUTLIER_TOKENS]
        print(f"\n{kind}\n{'times as fast as cuBLAS, m =':34}" + "".join(f"{m:>9}" for m in own))
        first = len(results)
        for shape in SHAPES:
            row = list(bench_spqr.products([shape], own, [kind]))
            results += row
            size = f"{shape[0]} x {shape[1]}, {row[0].bits_per_weight:.3f} bpw" if row else ""
            print(f"{size:34}" + "".join(f"{p.ratio:9.2f}" for p in row), flush=True)
            print(f"{'  ours, us':34}" + "".join(f"{p.ours * 1e6:9.1f}" for p in row), flush=True)
            print(f"{'  cuBLAS, us':34}" + "".join(f"{p.cublas * 1e6:9.1f}" for p in row), flush=True)
            theirs = [p.cublas / p.tinygemm if p.tinygemm else 0.0 for p in row]
            print(f"{'  torch int4 g64, no outliers':34}" + "".join(f"{t:9.2f}" for t in theirs), flush=True)
        means = [geometric_mean([p.ratio for p in results[first:] if p.tokens == m]) for m in own]
        print(f"{'geometric mean':34}" + "".join(f"{mean:9.3f}" for mean in means), flush=True)
    return [asdict(p) for p in results]


def sparse() -> list[dict[str, object]]:
    """What outliers cost, and what cuSPARSE would take for them."""
    print(f"{'outliers alone, us':24}{'share':>8}{'ours':>8}{'cuSPARSE':>10}")
    results = []
    for s in bench_spqr.sparse():
        results.append(asdict(s))
        size = f"{s.rows} x {s.cols}"
        print(
            f"{size:24}{100 * s.outliers:7.1f}%{s.ours * 1e6:8.1f}{s.cusparse * 1e6:10.1f}",
            flush=True,
        )
    return results


def sweep() -> list[dict[str, object]]:
    """Every build of the product for few tokens, to choose `spqr.linear.variant_for` by."""
    measure.warm_up(torch.device("cuda"))
    limit, results = shared_limit(torch.device("cuda", torch.cuda.current_device())), []
    for kind in (FOUR_BITS, THREE_BITS):
        for rows, cols in _SWEPT_SHAPES:
            own = bench_spqr.sample(rows, cols, kind)
            packed = own.copies()
            plain = [own.weight.clone() for _ in range(measure.copies(2 * rows * cols))]
            stage = own.matrix.geometry.stage_bytes
            for m, builds in _BUILDS.items():
                x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
                fitting = [v for v in builds if v.shared(stage) * v.blocks_per_sm <= limit]
                calls = [[partial(device.linear, x, p, None, v) for p in packed] for v in fitting]
                cublas, *times = measure.seconds([partial(linear, x, w) for w in plain], *calls, replays=11)
                print(f"{kind}, {rows} x {cols}, m = {m}, cuBLAS {cublas * 1e6:.1f} us")
                for v, seconds in zip(fitting, times, strict=True):
                    print(f"  {cublas / seconds:5.2f}  {seconds * 1e6:6.1f} us  {v}", flush=True)
                    build = asdict(v) | {"kind": str(kind), "rows": rows, "cols": cols, "seconds": seconds}
                    results.append(build | {"cublas": cublas})
    return results


if __name__ == "__main__":
    main()
