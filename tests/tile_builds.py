"""The builds of the product for many tokens that tests try in the `fast` layout, and what they are called."""

from __future__ import annotations

from tersor.kernels.tile.variant import VARIANTS, Build, fitting
from tersor.kernels.window.layout import Geometry

BUILDS = [build for size in VARIANTS for build in fitting(size, Geometry(16, 64))]


def name_of(build: Build) -> str:
    """As a test is called."""
    return "-".join(f"{name[:2]}{value}" for name, value in vars(build).items() if value).replace(" ", "")
