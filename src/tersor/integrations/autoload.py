"""How Transformers learns of tersor without anybody importing it.

Transformers has no entry point for quantization methods, and a method it does not know it
skips with a warning. But torch calls every entry point of the group `torch.backends` at the
end of `import torch`, and Transformers cannot load a model without torch. So pyproject.toml
names `register` there. It puts a finder in front of `sys.meta_path` that waits for one
module, `transformers.quantizers`, lets Python load it as ever, imports our adapter right
after it, and is gone. Who never imports Transformers pays a few microseconds.

Two things must hold. Nothing heavy happens here: torch is barely imported. And no fault of
ours may break `import torch`, or `import transformers`: it becomes a warning that says so.
Rejected: a `.pth` file (runs in every Python process, torch or not), and patching
Transformers' mappings from outside (they move between versions; its decorators do not).

TERSOR_DISABLE_AUTOLOAD=1 switches all of it off; `import tersor.integrations.transformers`
then registers by hand.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AWAITED = "transformers.quantizers"
LATER = "transformers.modeling_utils"  # awaited instead if it is the first that imports torch
ADAPTER = "tersor.integrations.transformers"
OFF_SWITCH = "TERSOR_DISABLE_AUTOLOAD"


def register() -> None:
    """Entry point of `torch.backends`: import the adapter now or when Transformers is imported."""
    try:
        if os.environ.get(OFF_SWITCH, "") not in ("", "0"):
            return
        awaited = sys.modules.get(AWAITED)
        if awaited is not None and not getattr(awaited.__spec__, "_initializing", False):
            _import_adapter()
        elif not any(isinstance(finder, _OneShotFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _OneShotFinder(AWAITED if awaited is None else LATER))
    except Exception as error:
        _warn(error)


def _import_adapter() -> None:
    try:
        importlib.import_module(ADAPTER)
    except Exception as error:
        _warn(error)


def _warn(error: Exception) -> None:
    """By logging, not `warnings`: those can be errors, and then they would break the import after all."""
    logging.getLogger(__name__).warning(
        "tersor could not register with Transformers, so this process cannot load tersor checkpoints: %s: %s. "
        "For the whole error: import %s. To silence this: %s=1",
        type(error).__name__,
        error,
        ADAPTER,
        OFF_SWITCH,
    )


class _OneShotFinder(MetaPathFinder):
    """Finds the awaited module once, by the other finders, with a loader that runs us afterwards."""

    def __init__(self, awaited: str) -> None:
        self.awaited = awaited

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.awaited:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenAdapter(spec.loader)
        return spec


class _ThenAdapter(Loader):
    """The real loader of a module, followed by the import of the adapter."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader  # resources, pickling: as if never here
        self.loader.exec_module(module)
        _import_adapter()
