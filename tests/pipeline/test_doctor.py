"""`tersor doctor` in a process of its own: what it imports itself must be enough."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


def checks() -> dict[str, dict[str, Any]]:
    """What doctor says, by the name of the check."""
    done = subprocess.run(
        [sys.executable, "-m", "tersor", "doctor", "--json"], capture_output=True, text=True, timeout=300
    )
    assert done.stderr == ""
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_what_is_installed_is_found() -> None:
    found = checks()
    assert found["numpy"]["status"] == "ok"
    assert found["codec"]["status"] == "ok"


@pytest.mark.gpu
def test_the_kernels_are_run() -> None:
    assert checks()["kernels"]["status"] == "ok"
