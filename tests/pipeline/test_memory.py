"""Memory of `compress` is bounded by a few tensors, whatever the model's size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crafting import file_bytes, gaussian, tree, write_model
from tersor.pipeline import writing
from tersor.pipeline.compress import compress

# Prints the resident memory after a small job and at its highest during the large one, in bytes. The budget
# beyond two of the largest tensors is cut to 16 MB, else this model would be held whole without breaking a rule.
PROGRAM = """
import re, sys
from tersor.pipeline import compress as module
from tersor.pipeline import writing
writing._SPARE_BYTES = 16 << 20
def peak():
    status = open("/proc/self/status").read()  # ru_maxrss would count the process that started this one, too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
module.compress(sys.argv[1], sys.argv[3])
print(peak())
module.compress(sys.argv[2], sys.argv[4])
print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Twelve tensors of 32 MB in two shards: 400 MB that must pass through 2 x 32 MB and what the codec needs."""
    largest = gaussian((4096, 4096))
    small = write_model(tmp_path / "small", [{"w": gaussian((64, 64))}])
    names = [f"w{i}" for i in range(12)]
    large = write_model(
        tmp_path / "large", [dict.fromkeys(names[:10], largest), dict.fromkeys(names[10:], largest)]
    )
    paths = [str(p) for p in (small, large, tmp_path / "small-out", tmp_path / "large-out")]
    env = {**os.environ, "TERSOR_THREADS": "2"}  # each thread has a few megabytes of its own
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], check=False, capture_output=True, text=True, env=env
    )
    assert ran.returncode == 0, ran.stderr
    before, highest = (int(line) for line in ran.stdout.split())
    tensor = len(largest.data)
    assert highest - before < 2 * tensor + (160 << 20)
    assert highest - before < 12 * tensor  # far from the whole, or this test shows nothing


def test_a_tensor_larger_than_all_of_the_budget_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "m.safetensors"
    plain.write_bytes(file_bytes({f"w{i}": gaussian((64, 64), seed=i) for i in range(20)}))
    compress(plain, tmp_path / "roomy.safetensors")
    monkeypatch.setattr(writing, "_SPARE_BYTES", 1 - 2 * 64 * 64 * 2)  # a budget of one byte
    compress(plain, tmp_path / "tight.safetensors")
    assert tree(tmp_path / "tight.safetensors") == tree(tmp_path / "roomy.safetensors")
