"""What a user can ask for: a method, an average width, a size, or a bound on the loss.

A method says how every matrix is quantised, and what comes of it is measured. The other goals leave
that to an allocation by measured sensitivity: each matrix gets the width that it needs, from a list of
candidates, or stays lossless.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tersor.format.errors import UsageError
from tersor.quantize.integers import IntegerSettings
from tersor.quantize.method import Method
from tersor.quantize.settings import ActOrder, Settings, gptq, preset, rtn

Kind = Literal["method", "bits", "size", "kl", "ppl"]
Family = Literal["spqr", "gptq", "rtn", "integers"]

# The coarsest first: it is the one by which sensitivity is probed. Groups of 32, runs of 64 and statistics of 4
# bits give more for a bit than the paper's 16, 16 and 3, which the presets keep (dev/LOG.md).
_GRIDS = (
    *(preset("3-bit", bits=bits, rows=64, stat_bits=4) for bits in (2, 3)),
    *(preset("4-bit", bits=bits, group=32, rows=64, stat_bits=4) for bits in (3, 4, 5, 6, 8)),
)
_INTEGERS = tuple(IntegerSettings(bits) for bits in (2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0))


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    kind: "method": quantise every matrix by the one method; "bits": at most `value` bits per quantised
    weight, everything counted; "size": at most `value` bytes of weight files; "kl": at most `value` nats of
    KL divergence from the original; "ppl": perplexity grows by at most the share `value`.
    methods: the one method, or the candidates of the allocation, coarsest first.
    """

    kind: Kind
    value: float
    methods: tuple[Method, ...]

    @property
    def bound(self) -> bool:
        """Whether the goal is a bound on the loss, which has to be measured."""
        return self.kind in ("kl", "ppl")

    def __str__(self) -> str:
        if self.kind == "method":
            return describe(self.methods[0])
        told = {
            "bits": f"at most {self.value:g} bits per weight",
            "size": f"at most {self.value:,.0f} bytes",
            "kl": f"KL divergence of at most {self.value:g}",
            "ppl": f"perplexity at most {100 * self.value:g} % higher",
        }
        return told[self.kind]


@dataclass(frozen=True)
class Calibration:
    """The text that quantisation learns the inputs from.

    length: tokens of a sequence; None is the model's context, at most 2048.
    """

    text: Path
    sequences: int = 128
    length: int | None = None
    seed: int = 0


def one_method(
    family: Family,
    bits: float,
    group: int | None = None,
    rows: int | None = None,
    tau: float | None = None,
    stat_bits: int | None = None,
    act_order: ActOrder | None = None,
) -> Goal:
    """Every matrix by one method. Raises `UsageError` for settings that the method does not have.

    group, rows, tau, stat_bits: g, h, the outlier threshold, and bits of a scale's and a zero's code;
    act_order: in which order columns are quantised. None is the method's default, for `group` of gptq and
    rtn the whole row.
    """
    if family == "integers":
        _refuse(family, group=group, rows=rows, tau=tau, stat_bits=stat_bits, act_order=act_order)
        return Goal("method", bits, (IntegerSettings(bits),))
    if bits != int(bits):
        raise UsageError(f"codes of {family} have a whole number of bits, not {bits:g}")
    width = int(bits)
    if family == "spqr":
        changes: dict[str, object] = {"bits": width, "group": group, "rows": rows, "tau": tau}
        changes |= {"stat_bits": stat_bits, "act_order": act_order}
        given = {name: value for name, value in changes.items() if value is not None}
        base = "3-bit" if width <= 3 else "4-bit"
        return Goal("method", bits, (preset(base, **given),))
    _refuse(family, rows=rows, tau=tau, stat_bits=stat_bits)
    if family == "rtn":
        _refuse(family, act_order=act_order)
        return Goal("method", bits, (rtn(width, group),))
    return Goal("method", bits, (replace(gptq(width, group), act_order=act_order or "groups"),))


def target(kind: Kind, value: float, family: Family) -> Goal:
    """A goal that is reached by allocation. Raises `UsageError` for values and methods it cannot have."""
    if family not in ("spqr", "integers"):
        raise UsageError(f"an allocation is made of spqr or integers, not of {family}; leave --method out")
    if not 0 < value < float("inf"):
        raise UsageError(f"a goal of {value:g} makes no sense; give a positive number")
    return Goal(kind, value, _INTEGERS if family == "integers" else _GRIDS)


def describe(method: Method) -> str:
    """A method in a few words."""
    if isinstance(method, IntegerSettings):
        return f"entropy-coded integers of {method.bits:g} bits"
    assert isinstance(method, Settings)
    name = "rtn" if not method.feedback else "gptq" if not method.stat_bits else "spqr"
    group = "whole rows" if method.group is None else f"groups of {method.group}"
    return f"{name} {method.bits} bits, {group}"


def _refuse(family: Family, **settings: float | str | None) -> None:
    given = [name.replace("_", "-") for name, value in settings.items() if value is not None]
    if given:
        raise UsageError(f"--{given[0]} does not belong to --method {family}")
