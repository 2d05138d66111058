"""Builds of the product for few tokens whose blocks add sums up within clusters, for tests."""

from __future__ import annotations

import pytest

from tersor.kernels.fused import device as fused
from tersor.kernels.fused.variant import Variant

H200 = 132, 227 << 10  # multiprocessors, and bytes of shared memory that a block may have

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


def pretend_an_h200(monkeypatch: pytest.MonkeyPatch, clusters: bool = True, warpgroups: bool = True) -> None:
    """To the choice of builds; or a GPU like it that lacks something."""
    monkeypatch.setattr(fused, "has_clusters", lambda _: clusters)
    monkeypatch.setattr(fused, "has_warpgroups", lambda _: warpgroups)
    monkeypatch.setattr(fused, "multiprocessors", lambda _: H200[0])
    monkeypatch.setattr(fused, "shared_limit", lambda _: H200[1])
