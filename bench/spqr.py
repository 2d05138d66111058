"""Quantised products against cuBLAS.

python bench/spqr.py [--tokens 1,8] [--json FILE] [--sweep [--four-bits]] [--sparse]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from tersor.format.errors import VerificationError
from tersor.kernels import bench_spqr, measure
from tersor.kernels.bench import SHAPES, geometric_mean
from tersor.kernels.bench_spqr import FOUR_BITS, KINDS, THREE_BITS, Kind, Product
from tersor.kernels.compiler import Program, machine_code
from tersor.kernels.fused.device import chosen, clustered
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import architecture, has_warpgroups, shared_limit
from tersor.kernels.spqr import device
from tersor.kernels.spqr.layout import Geometry, geometry_of
from tersor.kernels.spqr.linear import variant_for

_OUTLIER_TOKENS = (1, 8)  # for kinds that differ by their outliers only
# Streaming warps, ring stages, blocks per multiprocessor; then spans of activations in shared memory, if any.
_FEW = ((8, 4, 2), (8, 4, 3), (10, 4, 2), (16, 4, 1), (20, 4, 1), (6, 4, 3), (6, 4, 4), (4, 4, 5), (8, 2, 3))
_SLICED = ((16, 4, 1, 4), (20, 4, 1, 4), (12, 4, 1, 7), (8, 4, 2, 2), (16, 4, 1, 2))
_BUILDS = {
    1: [Variant(1, *build) for build in _FEW],
    8: [Variant(8, *build) for build in _FEW + _SLICED],
    16: [
        *(Variant(16, *build) for build in ((8, 4, 2, 1), (10, 4, 2, 1), (6, 4, 2, 1), (16, 4, 1, 2))),
        *(Variant(16, *build, slot_bytes=768) for build in ((6, 4, 3, 1), (20, 4, 1, 2), (12, 4, 1, 4))),
        *(Variant(16, warps, 4, 1, 4, buffers=1, slot_bytes=768) for warps in (14, 16)),
        *(Variant(16, *build, band=2) for build in ((6, 2, 2, 1), (8, 4, 1, 2), (12, 2, 1, 2))),
        Variant(16, 14, 2, 1, 2, slot_bytes=768, band=2),
        Variant(16, 8, 2, 2, 1, slot_bytes=768, band=2, adders=1),
    ],
}
_SWEPT_KINDS = (FOUR_BITS, THREE_BITS)
_COMPILING = 16  # processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default=",".join(map(str, bench_spqr.TOKENS)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="every build worth trying instead")
    parser.add_argument("--sparse", action="store_true", help="the outliers alone instead")
    parser.add_argument("--four-bits", action="store_true", help="of the sweep, 4 bits only")
    args = parser.parse_args()
    tokens = [int(t) for t in args.tokens.split(",")]
    if args.sweep:
        found = sweep(tokens, _SWEPT_KINDS[: 1 if args.four_bits else None])
    elif args.sparse:
        found = sparse()
    else:
        found = products(tokens)
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
            theirs = [f"{p.cublas / p.tinygemm:.2f}" if p.tinygemm else "-" for p in row]
            print(f"{'  torch int4 g64, no outliers':34}" + "".join(f"{t:>9}" for t in theirs), flush=True)
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


def sweep(tokens: Sequence[int], kinds: Sequence[Kind]) -> list[dict[str, object]]:
    """Every build of the product for few tokens, to choose `spqr.linear.variant_for` by; each is checked first."""
    gpu = torch.device("cuda", torch.cuda.current_device())
    limit, results = shared_limit(gpu), []
    for kind in kinds:
        geometries = [
            geometry_of(*shape, kind.bits, kind.group, kind.run, kind.stat_bits) for shape in SHAPES
        ]
        builds = {m: [v for v in _BUILDS[m] if _fits(v, geometries, limit)] for m in tokens if m in _BUILDS}
        every = {(w, g) for own in builds.values() for g in geometries if g for w in _ways(own, g, gpu)}
        _compile({v.program(g) for v, g in every}, gpu)
        measure.warm_up(gpu)
        ratios: dict[Variant, list[float]] = {}
        for rows, cols in SHAPES:
            own = bench_spqr.sample(rows, cols, kind)
            packed = own.copies()
            plain = [own.weight.clone() for _ in range(measure.copies(2 * rows * cols))]
            for m, tried in builds.items():
                x = torch.randn(m, cols, device=gpu, dtype=torch.bfloat16)
                usual = chosen(variant_for, m, own.matrix.geometry, gpu)
                ways = list(dict.fromkeys([usual, *_ways(tried, own.matrix.geometry, gpu)]))
                _check(x, own, ways)
                calls = [[partial(device.linear, x, p, None, v) for p in packed] for v in ways]
                cublas, *times = measure.seconds([partial(linear, x, w) for w in plain], *calls, replays=11)
                print(f"{kind}, {rows} x {cols}, m = {m}, cuBLAS {cublas * 1e6:.1f} us")
                best = min(times)
                for v, seconds in zip(ways, times, strict=True):
                    mark = " chosen" * (v == usual) + " BEST" * (seconds == best)
                    print(f"  {cublas / seconds:5.2f}  {seconds * 1e6:6.1f} us  {_name(v)}{mark}", flush=True)
                    build = asdict(v) | {"kind": str(kind), "rows": rows, "cols": cols, "seconds": seconds}
                    results.append(build | {"cublas": cublas})
                    ratios.setdefault(v, []).append(cublas / seconds)
            del own, packed, plain
        print(f"{kind}, geometric means of the builds that every shape was multiplied by:")
        for v, found in sorted(ratios.items(), key=lambda entry: -geometric_mean(entry[1])):
            if len(found) == len(SHAPES):
                print(f"  {geometric_mean(found):6.3f}  {_name(v)}")
        for m in builds:
            best_of = [
                max(float(r["cublas"]) / float(r["seconds"]) for r in results if _is(r, kind, shape, m))
                for shape in SHAPES
            ]
            print(f"  {geometric_mean(best_of):6.3f}  the best for each shape, m = {m}")
    return results


def _fits(variant: Variant, geometries: Sequence[Geometry | None], limit: int) -> bool:
    return all(g and variant.shared(g.stage_bytes) * variant.blocks_per_sm <= limit for g in geometries)


def _ways(builds: Sequence[Variant], geometry: Geometry, gpu: torch.device) -> Iterator[Variant]:
    """The builds, with warpgroups and with the blocks of a quad in a cluster those that can have them."""
    wide = [v.in_warpgroups() for v in builds if has_warpgroups(gpu)]
    every = dict.fromkeys((*builds, *wide))
    return chain.from_iterable(dict.fromkeys((v, clustered(v, geometry, gpu))) for v in every)


def _is(result: dict[str, Any], kind: Kind, shape: tuple[int, int], tokens: int) -> bool:
    own = result["kind"], (result["rows"], result["cols"]), result["tokens"]
    return own == (str(kind), shape, tokens)


def _name(v: Variant) -> str:
    """Only what is not as usual, but for how many warps there are and how deep the rings are."""
    usual = Variant(v.tokens, 0, 0)
    return " ".join(f"{name} {value}" for name, value in asdict(v).items() if value != getattr(usual, name))


def _compile(programs: set[Program], gpu: torch.device) -> None:
    """All of them into the cache, in processes of their own: one after another takes minutes."""
    started = time.perf_counter()
    with ProcessPoolExecutor(min(_COMPILING, os.cpu_count() or 1), get_context("spawn")) as pool:
        list(pool.map(machine_code, programs, repeat(architecture(gpu))))
    print(f"{len(programs)} builds compiled in {time.perf_counter() - started:.0f} s", flush=True)


def _check(x: torch.Tensor, own: bench_spqr.Sample, builds: Sequence[Variant]) -> None:
    """An error like cuBLAS's, and the same bits from every build."""
    exact = x.double() @ own.weight.double().T
    most = bench_spqr.WORST_ERROR * bench_spqr.error(linear(x, own.weight), exact)
    first = device.linear(x, own.matrix, None, builds[0])
    for build in builds:
        torch.full_like(first, float("nan"))  # freed: poison
        y = device.linear(x, own.matrix, None, build)
        error = bench_spqr.error(y, exact)
        if not error <= most or not torch.equal(y, first):
            raise VerificationError(
                f"{build}: error {error:.1e}, {most:.1e} allowed; the bits of {builds[0]}?"
            )


if __name__ == "__main__":
    main()
