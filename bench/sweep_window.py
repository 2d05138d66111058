"""Every build of the fused product worth trying on this GPU, against cuBLAS: how `variant_for` was chosen.

python bench/sweep_window.py [--replays 11]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch.nn.functional import linear

from tersor.kernels import measure
from tersor.kernels.bench import SHAPES, geometric_mean
from tersor.kernels.fused.variant import Variant
from tersor.kernels.launcher import shared_limit
from tersor.kernels.window import device as window
from tersor.kernels.window.layout import STAGE_BYTES

# (streaming warps, ring stages, blocks per multiprocessor)
FEW = ((16, 2, 1), (20, 2, 1), (8, 2, 2), (10, 2, 2), (8, 4, 2), (8, 2, 3), (4, 2, 5))
VARIANTS = {
    1: [Variant(1, *build) for build in FEW],
    8: [Variant(8, *build) for build in FEW] + [Variant(8, 16, 2, 1, 4), Variant(8, 8, 2, 2, 2)],
    16: [
        Variant(16, 16, 2, 1, 2),
        Variant(16, 8, 2, 2, 1),
        Variant(16, 10, 2, 2, 1, 1),
        Variant(16, 8, 2, 2),
    ],
    32: [
        Variant(32, 12, 2, 1, 1),
        Variant(32, 16, 2, 1, 1, 1),
        Variant(32, 10, 2, 1, 1),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replays", type=int, default=11)
    replays = parser.parse_args().replays
    device = torch.device("cuda", torch.cuda.current_device())
    measure.warm_up(device)
    best: dict[int, list[float]] = {m: [] for m in VARIANTS}
    for rows, cols in SHAPES:
        weight = (torch.randn(rows, cols, device=device) * 0.02).bfloat16()
        packed = window.pack(weight)
        ours = [window.pack(weight) for _ in range(measure.copies(packed.stages.numel()))]
        plain = [weight.clone() for _ in range(measure.copies(2 * weight.numel()))]
        for m, variants in VARIANTS.items():
            x = torch.randn(m, cols, device=device, dtype=torch.bfloat16)
            fitting = [v for v in variants if v.shared(STAGE_BYTES) <= shared_limit(device)]
            calls = [[partial(window.linear, x, p, None, v) for p in ours] for v in fitting]
            cublas, *times = measure.seconds([partial(linear, x, w) for w in plain], *calls, replays=replays)
            ratios = [cublas / seconds for seconds in times]
            best[m].append(max(ratios))
            print(f"{rows} x {cols}, m = {m}, cuBLAS {cublas * 1e6:.1f} us")
            for v, ratio in zip(fitting, ratios, strict=True):
                print(f"  {ratio:5.2f}  {v}", flush=True)
    for m, ratios in best.items():
        print(f"m = {m}: geometric mean of the best {geometric_mean(ratios):.3f}, worst {min(ratios):.3f}")


if __name__ == "__main__":
    main()
