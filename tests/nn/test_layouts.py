"""The `fast` layout in a module: the same bits, the same module, and back again (on the CPU's operators)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tersor.format.constants import CODEC_HUFFMAN
from tersor.format.errors import UsageError
from tersor.format.manifest import TensorEntry
from tersor.nn import CompressedLinear, compress, lay_out, restore
from tersor.nn.fused import Fused
from tersor.nn.stored import Stored


def compressed_linear(cols: int, rows: int, bias: bool = True) -> tuple[CompressedLinear, nn.Linear]:
    """A compressed linear layer of random bf16 weights, some far outside any window, and its plain twin."""
    plain = nn.Linear(cols, rows, bias=bias, dtype=torch.bfloat16)
    with torch.no_grad():
        plain.weight.normal_(std=0.02)
        plain.weight[0, :3] = torch.tensor([0.0, -0.0, 1e-30])
        plain.weight[rows // 2, 1] = 1e30
    layer = copy.deepcopy(plain)
    tiles, offsets, book = torch.ops.tersor.huffman_encode(plain.weight)
    parts = {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book}
    compress(layer, "weight", TensorEntry(CODEC_HUFFMAN, "BF16", (rows, cols), "0" * 64), parts)
    assert isinstance(layer, CompressedLinear)
    return layer, plain


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bit patterns: -0 is not 0."""
    return tensor.contiguous().view(torch.int16)


@pytest.mark.parametrize(("cols", "rows"), [(64, 16), (200, 40), (1030, 33)])
def test_there_and_back(cols: int, rows: int) -> None:
    """Fast and compact again: weights bit for bit, products the plain layer's on the CPU, stored parts the same."""
    layer, plain = compressed_linear(cols, rows)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    x = torch.randn(3, cols, dtype=torch.bfloat16)
    assert lay_out(layer, "fast", device_type="cpu") == 1
    assert isinstance(layer.compressed["weight"], Fused)
    assert not any(name.endswith("_tiles") for name, _ in layer.named_parameters())
    assert torch.equal(bits(layer.weight.clone()), bits(plain.weight))
    assert torch.equal(layer(x), plain(x))
    assert lay_out(layer, "compact", device_type="cpu") == 0
    after = dict(layer.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8)) for name in before)


def test_exact_is_noted_and_can_change() -> None:
    """A second call changes how a layer multiplies, not its arrays."""
    layer, _ = compressed_linear(128, 32)
    lay_out(layer, "fast", exact=False, device_type="cpu")
    blocks = layer.get_parameter("weight_blocks")
    lay_out(layer, "fast", exact=True, device_type="cpu")
    assert layer.compressed["weight"].exact and layer.get_parameter("weight_blocks") is blocks  # type: ignore[attr-defined]


def test_restore_copy_and_cast() -> None:
    """A layer in the fast layout is copied, cast and restored like any compressed one."""
    layer, plain = compressed_linear(96, 24)
    lay_out(layer, "fast", device_type="cpu")
    twin = copy.deepcopy(layer)
    assert torch.equal(bits(twin.weight.clone()), bits(plain.weight))
    wide = copy.deepcopy(layer).to(torch.float32)
    assert torch.equal(wide.weight.clone(), plain.weight.float())
    restore(layer)
    assert type(layer) is nn.Linear and torch.equal(bits(layer.weight.detach()), bits(plain.weight.detach()))


def test_what_stays() -> None:
    """Layers on other devices, and layers whose weight an embedding shares, are left as they are."""
    layer, _ = compressed_linear(64, 16)
    assert lay_out(layer, "fast", device_type="cuda") == 0
    model = nn.ModuleList([layer, compressed_linear(64, 16)[0]])
    model[1]._parameters["weight_tiles"] = layer._parameters["weight_tiles"]
    assert lay_out(model, "fast", device_type="cpu") == 0


def test_a_head_that_is_the_embedding() -> None:
    """Both change together, the embedding reads rows of the layout, and they go on sharing."""
    head, plain = compressed_linear(72, 40, bias=False)
    table = nn.Embedding(40, 72, dtype=torch.bfloat16)
    parts = {name: p for name, p in head.named_parameters() if name != "bias"}
    compress(table, "weight", head.compressed["weight"].entry, parts)  # type: ignore[attr-defined]
    for name in parts:
        table._parameters[name] = head._parameters[name]
    model = nn.ModuleDict({"table": table, "head": head})
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids, x = torch.tensor([[3, 39, 3], [0, 17, 20]]), torch.randn(2, 72).bfloat16()
    for layout, kind in (("fast", Fused), ("fast", Fused), ("compact", Stored)):
        assert lay_out(model, layout, device_type="cpu") == (kind is Fused)  # type: ignore[arg-type]
        assert all(isinstance(m.compressed["weight"], kind) for m in (table, head))  # type: ignore[union-attr]
        assert [id(p) for p in table.parameters()] == [id(p) for p in head.parameters()]
        assert torch.equal(bits(table(ids)), bits(plain.weight[ids])) and torch.equal(head(x), plain(x))
    assert all(
        torch.equal(p.view(torch.uint8), before[n].view(torch.uint8)) for n, p in model.named_parameters()
    )


def test_unknown_layout() -> None:
    """An unknown layout names the known ones."""
    with pytest.raises(UsageError, match="auto, compact, fast"):
        lay_out(nn.Linear(2, 2), "quick")  # type: ignore[arg-type]
