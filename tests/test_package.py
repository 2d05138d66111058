"""The package as a whole: what it offers, what importing it costs, and who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tersor

ROOT = Path(tersor.__file__).parent

# architecture: an arrow may import. `_version` is anybody's.
LAYERS = {
    "cli": {"pipeline", "format"},
    "pipeline": {"quantize", "nn", "kernels", "codec", "format", "integrations"},
    "integrations": {"nn", "kernels", "codec", "format"},
    "quantize": {"codec", "format"},
    "nn": {"kernels", "codec", "format"},
    "kernels": {"codec", "format"},
    "codec": {"format"},
    "format": set(),
}


def test_public_names() -> None:
    assert sorted(tersor.__all__) == [
        "TersorConfig",
        "TersorError",
        "__version__",
        "compress",
        "decompress",
        "inspect_model",
        "inspect_tensor",
        "lay_out",
        "plan",
        "verify",
    ]
    assert dir(tersor) == sorted(tersor.__all__)
    for name in tersor.__all__:
        if name != "TersorConfig":  # needs transformers
            assert getattr(tersor, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tersor.nothing
    assert (ROOT / "py.typed").exists()


def imports(module: Path) -> set[str]:
    """The packages of tersor that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("tersor.")}
    return found


@pytest.mark.parametrize("module", sorted(ROOT.rglob("*.py")), ids=lambda m: str(m.relative_to(ROOT)))
def test_import_direction(module: Path) -> None:
    place = module.relative_to(ROOT)
    if len(place.parts) == 1:
        return  # the package's own front door
    layer = place.parts[0]
    assert layer in LAYERS, f"{layer} is no layer"
    assert imports(module) - {layer, "_version"} <= LAYERS[layer]


def test_layers_are_all_there_is() -> None:
    assert {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()} == set(LAYERS)


def fresh(program: str) -> str:
    """What a program prints in a new interpreter."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_importing_is_quick_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, time, json; before = set(sys.modules); t = time.perf_counter(); import tersor; "
        "s = time.perf_counter() - t; print(json.dumps([s, sorted(set(sys.modules) - before)]))"
    )
    runs = [json.loads(fresh(program)) for _ in range(5)]
    assert min(seconds for seconds, _ in runs) < 0.1
    loaded = {name.split(".")[0] for name in runs[0][1]}
    assert not loaded & {"torch", "numpy", "numba", "transformers", "safetensors", "typer", "rich"}


def test_jobs_need_no_torch() -> None:
    """Compressing, verifying and the command line work where torch is not installed."""
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
        "import tersor, tersor.cli.app; tersor.compress, tersor.verify, tersor.plan, tersor.inspect_model; print('ok')"
    )
    assert fresh(program) == "ok\n"


def test_without_numba_the_reference_serves() -> None:
    """The same bytes from NumPy alone."""
    program = """
import sys, hashlib
if {without}:
    import importlib.util
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *a: None if name == "numba" else found(name, *a)
    sys.modules["numba"] = None
import numpy as np
from tersor.codec import BACKEND, decode, encode
data = np.arange(40 * 300 * 2, dtype=np.uint8) % 7
packed = encode(data, "BF16", (40, 300))
assert decode(packed).tobytes() == data.tobytes()
print(BACKEND, hashlib.sha256(packed.tiles.tobytes() + packed.offsets.tobytes() + packed.book.tobytes()).hexdigest())
"""
    plain, compiled = (fresh(program.format(without=w)).split() for w in (True, False))
    assert plain[0] == "numpy"
    assert plain[1] == compiled[1]
