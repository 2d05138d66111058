"""Both implementations of the codec, the reference and the compiled one."""

from __future__ import annotations

from types import ModuleType

import pytest

from tersor.codec import reference


@pytest.fixture(params=["numpy", "numba"])
def codec(request: pytest.FixtureRequest) -> ModuleType:
    """One implementation of the codec; a test that asks for it runs with both."""
    return reference if request.param == "numpy" else pytest.importorskip("tersor.codec.fast")


@pytest.fixture
def fast() -> ModuleType:
    """The compiled implementation."""
    return pytest.importorskip("tersor.codec.fast")
