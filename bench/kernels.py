"""The tables of dev/BENCHMARKS.md: python bench/kernels.py [--tokens 1,8] [--products] [--json FILE]."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tersor.kernels import bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default=",".join(map(str, bench.TOKENS)))
    parser.add_argument("--products", action="store_true", help="nothing else")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = ([] if args.products else codecs()) + products([int(t) for t in args.tokens.split(",")])
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in found], indent=1))


def codecs() -> list[bench.Codec | bench.Product]:
    """The table of decoding and encoding."""
    print(f"{'decode, encode: GB/s of bfloat16':34}{'layout':>9}{'bpw':>9}{'decode':>9}{'encode':>9}")
    found: list[bench.Codec | bench.Product] = []
    for c in bench.codecs():
        found.append(c)
        size = f"{c.rows} x {c.cols}"
        print(
            f"{size:34}{c.layout:>9}{c.bits_per_weight:9.3f}{c.decode / 1e9:9.0f}{c.encode / 1e9:9.0f}",
            flush=True,
        )
    print()
    return found


def products(tokens: Sequence[int]) -> list[bench.Codec | bench.Product]:
    """The table of products in the `fast` layout."""
    print(f"{'times as fast as cuBLAS, m =':34}" + "".join(f"{m:>9}" for m in tokens))
    results: list[bench.Product] = []
    for shape in bench.SHAPES:
        row = list(bench.products([shape], tokens))
        results += row
        print(f"{f'{shape[0]} x {shape[1]}':34}" + "".join(f"{p.ratio:9.2f}" for p in row), flush=True)
        print(f"{'  cuBLAS, us':34}" + "".join(f"{p.cublas * 1e6:9.1f}" for p in row), flush=True)
    means = [bench.geometric_mean([p.ratio for p in results if p.tokens == m]) for m in tokens]
    print(f"{'geometric mean':34}" + "".join(f"{mean:9.3f}" for mean in means))
    return list(results)


if __name__ == "__main__":
    main()
