"""tersor: terse weights for large language models.

    import tersor
    tersor.compress("./Llama-3.1-8B", "./Llama-3.1-8B-tersor")
    tersor.verify("./Llama-3.1-8B-tersor", against="./Llama-3.1-8B").ok

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("./Llama-3.1-8B-tersor")

Importing this package is quick and imports neither torch nor NumPy; each name below is loaded
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor._version import __version__

if TYPE_CHECKING:
    from tersor.format.errors import TersorError
    from tersor.integrations.transformers import TersorConfig
    from tersor.nn import lay_out
    from tersor.pipeline.compress import compress
    from tersor.pipeline.decompress import decompress
    from tersor.pipeline.inspect import inspect_model, inspect_tensor
    from tersor.pipeline.plan import plan
    from tersor.pipeline.verify import verify

_HOME = {
    "TersorConfig": "tersor.integrations.transformers",
    "TersorError": "tersor.format.errors",
    "compress": "tersor.pipeline.compress",
    "decompress": "tersor.pipeline.decompress",
    "inspect_model": "tersor.pipeline.inspect",
    "inspect_tensor": "tersor.pipeline.inspect",
    "lay_out": "tersor.nn",
    "plan": "tersor.pipeline.plan",
    "verify": "tersor.pipeline.verify",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
