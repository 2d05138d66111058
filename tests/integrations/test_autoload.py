"""Registration without an import of ours: it happens, it costs nothing, and it never breaks anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tersor.integrations import autoload

Build = Callable[[str], Path]


def python(script: str, *arguments: str, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a fresh interpreter, warnings being errors."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr


def test_torch_alone_loads_nothing_of_ours() -> None:
    out, err = python("import sys, torch; print(sorted(m for m in sys.modules if m.startswith('tersor')))")
    assert out == "['tersor', 'tersor._version', 'tersor.integrations', 'tersor.integrations.autoload']"
    assert err == ""


REGISTERED = "import transformers.quantizers.auto as a; print('tersor' in a.AUTO_QUANTIZER_MAPPING)"


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForCausalLM",
        "import transformers.quantizers, torch, transformers.modeling_utils",
        "from transformers.quantizers import AutoQuantizationConfig; import transformers.modeling_utils",
    ],
)
def test_any_order_of_imports_registers(first: str) -> None:
    out, _ = python(f"{first}; import transformers.modeling_utils; {REGISTERED}")
    assert out == "True"


def test_the_finder_is_gone_afterwards() -> None:
    script = (
        "import sys, transformers.modeling_utils, transformers.quantizers as q;"
        "print([type(f).__name__ for f in sys.meta_path if 'tersor' in type(f).__module__],"
        "type(q.__spec__.loader).__name__)"
    )
    assert python(script)[0] == "[] SourceFileLoader"


def test_loading_with_no_import_of_ours(compressed: Build) -> None:
    script = (
        "import sys; from transformers import AutoModelForCausalLM;"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1]).lm_head).__name__)"
    )
    assert python(script, str(compressed("llama")))[0] == "CompressedLinear"


def test_off_switch() -> None:
    script = f"import transformers.modeling_utils; {REGISTERED}"
    assert python(script, TERSOR_DISABLE_AUTOLOAD="1")[0] == "False"


def test_a_fault_in_the_adapter_breaks_no_import() -> None:
    """The adapter cannot be imported: torch and Transformers can, and are told about it."""
    fault = "import sys; sys.modules['tersor.integrations.transformers'] = None;"
    out, err = python(f"{fault} import torch, transformers.modeling_utils; {REGISTERED}")
    assert out == "False"
    assert "tersor could not register with Transformers" in err


def test_a_fault_in_the_hook_breaks_no_import() -> None:
    fault = "import sys, tersor.integrations.autoload as autoload;autoload._OneShotFinder = lambda *_: 1 / 0;"
    out, err = python(f"{fault} import torch; print(torch.ones(1).item())")
    assert out == "1.0"
    assert "tersor could not register with Transformers" in err


def test_registering_twice_adds_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, autoload.AWAITED, raising=False)
    autoload.register()
    autoload.register()
    assert sum(isinstance(finder, autoload._OneShotFinder) for finder in sys.meta_path) == 1
