"""Modules in whose forward something is shared: work that one layer does for others, and nothing afterwards.

Two things are: a product that siblings have in common (`tersor.nn.joint`; the JOINT of a scope's children), and a
call in which weights are decoded ahead (`tersor.nn.ahead`; in the list SHARED of the scope itself). SHARED is not
spelt plainly "shared", since an attribute would hide the submodule of that name that T5 has.

A scope's class is a subclass, made here, of the module's own. Its forward opens what is shared below
the module, runs the plain forward and closes it again, whatever happened. So nothing that is kept for a
sibling outlives the call, and a layer that is called outside of it does its own work alone. So does one in
a call that another thread makes meanwhile: that may compute on another stream, which would not wait for what
is made here. All of it is plain attributes, which `torch.compile` follows with `fullgraph` and a CUDA graph
does not see; no lock is needed, because what a call shares is an object of its own, and whoever finds another
thread's lets it be.
"""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Protocol

import torch
from torch import nn

from tersor.nn.module import CompressedModule

JOINT = "joint"  # a child of siblings that is shared by them in their parent's forward
SHARED = "shared_in_call"  # an attribute of a module: a list of what its descendants share in its forward


class Shared(Protocol):
    """What is shared while a module's forward runs."""

    def begin(self) -> Any:
        """Before the forward; what `end` is to be given."""
        ...

    def end(self, before: Any, finished: bool) -> None:
        """After it, `finished` or not: as it was before."""
        ...


def this_thread() -> int:
    """The mark of who shares: the thread that runs, or 0 in a graph that `torch.compile` makes."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Scope(nn.Module):
    """Mixin of the classes made here."""

    unscoped_class: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the class without this: this one is made at run time, as a compressed one's is."""
        if isinstance(self, CompressedModule):
            make, arguments, state = CompressedModule.__reduce_ex__(self, protocol)
            return _blank, (make, *arguments), state
        return _blank, (copyreg.__newobj__, self.unscoped_class), self.__dict__  # type: ignore[attr-defined]


def open_scope(module: nn.Module) -> None:
    """Make `module` a scope, in place, if it is none."""
    if not isinstance(module, Scope):
        plain: Any = type(module)
        changed: Any = module
        changed.__class__ = _scope_class(plain)


def close_scopes(model: nn.Module) -> None:
    """Give modules in which nothing is shared any more the class they had."""
    for module in model.modules():
        if isinstance(module, Scope) and not _shared(module):
            plain: Any = module
            plain.__class__ = module.unscoped_class


def _shared(module: nn.Module) -> list[Shared]:
    """What is shared in a module's forward, each once."""
    found: list[Any] = list(module.__dict__.get(SHARED, ()))
    for child in module._modules.values():
        joint = None if child is None else child._modules.get(JOINT)
        if joint is not None and not any(joint is other for other in found):
            found.append(joint)
    return found


@cache
def _scope_class(plain: Any) -> type[Scope]:
    @wraps(plain.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        opened = [(shared, shared.begin()) for shared in _shared(self)]
        finished = False
        try:
            result = plain.forward(self, *args, **kwargs)
            finished = True
            return result
        finally:
            for shared, before in opened:
                shared.end(before, finished)

    attributes = {
        "forward": forward,
        "unscoped_class": plain,
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
    }
    return type(plain.__name__, (Scope, plain), attributes)


def _blank(make: Callable[..., Any], *arguments: Any) -> Any:
    """An instance without state, for copy and pickle to fill: what `make` makes, as a scope."""
    made = make(*arguments)
    open_scope(made)
    return made
