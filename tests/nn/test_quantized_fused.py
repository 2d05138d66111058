"""Quantised weights held for fused products: the same weights, the stored arrays back (on the CPU's operators)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matrices import grid_matrix
from tersor.codec.quantized.dequantize import weight_bytes
from tersor.codec.quantized.matrix import Quantized
from tersor.codec.quantized.parts import entry_of, to_parts
from tersor.nn import compress, lay_out, restore
from tersor.nn.form_spqr import SpqrForm
from tersor.nn.fused import Fused, can_hold, fused_bytes
from tersor.nn.joint import Joint, Part

KINDS: dict[str, dict[str, Any]] = {
    "3 bits": {"width": 3},
    "4 bits, g32": {"width": 4, "group": 32, "run": 64, "stat_bits": 4},
    "8 bits, direct, ordered": {"width": 8, "stat_bits": 0, "run": 1, "ordered": True},
    "wide groups": {"width": 5, "group": 128, "outliers": 0},
    "grids within strips": {"width": 2, "run": 5},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def matrix(rows: int = 40, **options: Any) -> Quantized:
    return grid_matrix(rows, 300, **({"ordered": False} | options))


def weight(q: Quantized) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(list(weight_bytes(q)))).view(torch.bfloat16).reshape(q.shape)


def linear(q: Quantized, bias: bool = True) -> tuple[Any, nn.Linear]:
    """A layer with this weight, and its plain twin."""
    plain = nn.Linear(q.shape[1], q.shape[0], bias=bias, dtype=torch.bfloat16)
    plain.weight = nn.Parameter(weight(q), requires_grad=False)
    layer, parts = copy.deepcopy(plain), to_parts(q)
    tensors = {"weight" + name: torch.from_numpy(np.ascontiguousarray(p)) for name, p in parts.items()}
    compress(layer, "weight", entry_of(q, parts), tensors)
    return layer, plain


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a
    )


@EVERY
@pytest.mark.parametrize("exact", [False, True])
def test_there_and_back(kind: str, exact: bool) -> None:
    layer, plain = linear(matrix(**KINDS[kind]))
    before, x = state(layer), torch.randn(2, 3, 300).bfloat16()
    assert lay_out(layer, "fast", exact, device_type="cpu") == 1
    source = layer.compressed["weight"]
    assert isinstance(source, Fused) and isinstance(source.form, SpqrForm) and source.exact == exact
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.weight.clone().view(torch.int16), plain.weight.view(torch.int16))
    assert torch.equal(copy.deepcopy(layer).float()(x.float()), copy.deepcopy(plain).float()(x.float()))
    assert lay_out(layer, "compact", device_type="cpu") == 0
    assert same(state(layer), before) and torch.equal(layer(x), plain(x))
    lay_out(layer, "fast", device_type="cpu")
    restore(layer)
    assert type(layer) is nn.Linear and torch.equal(layer.weight, plain.weight)


def test_what_stays_as_it_is_stored() -> None:
    for q in (matrix(group=24), matrix(dtype="F16"), matrix(unit=2.0**-100)):
        layer, _ = linear(dataclasses.replace(q, dtype="BF16") if q.dtype == "F16" else q)
        if q.dtype == "F16":
            layer = layer.half()
        assert not can_hold(layer.compressed["weight"]) and lay_out(layer, "fast", device_type="cpu") == 0


@EVERY
def test_its_size_is_known_before(kind: str) -> None:
    """Within padding, in what is held: `auto` reckons with it."""
    layer, _ = linear(
        matrix(rows=512, outliers=3000, **{k: v for k, v in KINDS[kind].items() if k != "outliers"})
    )
    expected = fused_bytes(layer.compressed["weight"].entry)
    lay_out(layer, "fast", device_type="cpu")
    held = sum(p.nbytes for name, p in layer.named_parameters() if name != "bias" and "order" not in name)
    assert 0.95 * held <= expected <= 1.05 * held


class Attention(nn.Module):
    """Three projections of one input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k, v."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def attention(*matrices: Quantized) -> tuple[Any, Any]:
    module, plain = Attention(), Attention()
    for name, q in zip(("q_proj", "k_proj", "v_proj"), matrices, strict=True):
        layer, twin = linear(q)
        module.add_module(name, layer)
        plain.add_module(name, twin)
    return module, plain


def check(module: Any, plain: Any, joined: bool) -> None:
    """Products, weights and the way back are right, joined or not as expected."""
    before, x = state(module), torch.randn(1, 2, 300).bfloat16()
    assert lay_out(module, "fast", device_type="cpu") == 3
    assert any(isinstance(m, Joint) for m in module.modules()) == joined
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(module(x), plain(x), strict=True))
    for name in ("q_proj", "k_proj", "v_proj"):
        layer, twin = getattr(module, name), getattr(plain, name)
        assert torch.equal(layer.weight.clone(), twin.weight) and torch.equal(layer(x), twin(x))
        assert isinstance(layer.compressed["weight"], Part) == joined
    lay_out(module, "compact", device_type="cpu")
    assert same(state(module), before)


def test_siblings_are_joined() -> None:
    check(*attention(matrix(48, seed=1), matrix(32, seed=2), matrix(24, seed=3)), joined=True)


@pytest.mark.parametrize("stat_bits", [0, 3])
def test_siblings_of_several_units_are_joined(stat_bits: int) -> None:
    """In the smallest unit, where no weight changes."""
    run = 16 if stat_bits else 1
    made = [matrix(32, seed=s, unit=2.0**-u, stat_bits=stat_bits, run=run) for s, u in enumerate((5, 7, 4))]
    check(*attention(*made), joined=True)


def test_a_unit_that_would_change_weights_is_not_taken() -> None:
    """Scales 2^20 times as large are beyond binary16; subnormal ones gain nothing and lose nothing."""
    small = matrix(32, seed=1, unit=2.0**-24)
    check(*attention(small, matrix(32, unit=2.0**-4), small), joined=False)
    q = matrix(32, unit=2.0**-7)
    subnormal = dataclasses.replace(
        q, stats=q.stats * np.float16(2e-5), outlier_value=q.outlier_value * np.float16(2e-5)
    )
    check(*attention(small, subnormal, small), joined=True)
    near = matrix(32, seed=2, unit=2.0**-12)
    check(*attention(near, subnormal, near), joined=True)


def test_siblings_that_differ_stay_apart() -> None:
    q = matrix(32)
    for other in (
        matrix(32, width=3),
        matrix(32, group=32),
        matrix(32, ordered=True),
        matrix(32, stat_bits=0, run=1),
    ):
        check(*attention(q, other, q), joined=False)
    ordered = matrix(32, ordered=True)
    check(
        *attention(ordered, dataclasses.replace(matrix(32, seed=1), order=ordered.order), ordered),
        joined=True,
    )


def test_a_last_strip_that_is_not_full() -> None:
    check(*attention(matrix(40), matrix(32), matrix(32)), joined=False)


def test_it_compiles_whole() -> None:
    module, plain = attention(matrix(48), matrix(32), matrix(24))
    lay_out(module, "fast", device_type="cpu")
    products: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        products.append(sum("spqr_linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled, x = torch.compile(module, fullgraph=True, backend=backend), torch.randn(1, 300).bfloat16()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), plain(x), strict=True))
    assert products == [1]


def test_a_bias_is_added_once() -> None:
    layer, plain = linear(matrix(), bias=False)
    lay_out(layer, "fast", device_type="cpu")
    x = torch.randn(300).bfloat16()
    assert torch.equal(layer(x), F.linear(x, plain.weight))
