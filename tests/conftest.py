"""What every test may use. Tests marked `gpu` are skipped where torch sees no CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import tersor

# The same examples each time, and no failure because the machine was busy.
settings.register_profile(
    "tersor", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tersor")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none; torch is asked only if there are such tests."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or _has_gpu():
        return
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The small trained model that ships with the package; not to be written to."""
    return Path(tersor.__file__).parent / "demo_model"
