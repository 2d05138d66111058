"""Builds of the product for few tokens whose blocks add sums up within clusters, for tests."""

from __future__ import annotations

from tersor.kernels.fused.variant import Variant

TWO = Variant(16, 8, 4, 2, 1)  # blocks to a multiprocessor: what is launched
WIDE = TWO.in_warpgroups()  # and on Hopper
ONE_STRIP = Variant(16, 2, 4, 1, 1)  # to a round: many rounds of few rows
BUILDS = [
    TWO,
    WIDE,
    ONE_STRIP,
    Variant(16, 6, 2, 2, 1),
    Variant(16, 16, 4, 1, 1, buffers=1, slot_bytes=768),
    Variant(8, 8, 4, 2, 1),  # one adding warp
]
