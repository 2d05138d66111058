"""Without tersor, stock Transformers refuses a compressed checkpoint instead of loading random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Build = Callable[[str], Path]

SCRIPT = """
import sys
from transformers import AutoModelForCausalLM
for directory in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(directory)
    except RuntimeError as error:
        print("REFUSED", directory, error)
    else:
        print("LOADED", directory)
assert "tersor.integrations.transformers" not in sys.modules
"""


def test_stock_transformers_refuses(compressed: Build) -> None:
    directories = [str(compressed(name)) for name in ("llama", "llama-tied", "gpt2", "qwen3-moe", "mixtral")]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *directories],
        env=os.environ | {"TERSOR_DISABLE_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[:2] for line in run.stdout.splitlines()] == [["REFUSED", d] for d in directories]
    assert "Unknown quantization type, got tersor" in run.stderr
