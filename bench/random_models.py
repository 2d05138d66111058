"""Llama-shaped models of random weights, for speed and memory: plain, compressed, or quantised from the start.

A quantised model is made of random stored arrays (4-bit codes in groups of 32, statistics of 4 bits, 0.5 %
of outliers), layer by layer: the plain model, four times as large, never exists. Its embedding is lossless.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tersor.format.constants import CODEC_HUFFMAN, CODEC_SPQR, TILE_COLS, TILE_ROWS
from tersor.format.layout import Grid, row_bytes
from tersor.format.manifest import TensorEntry
from tersor.format.parameters import SpqrParameters
from tersor.nn import compress, lay_out

BITS, GROUP, RUN, STAT_BITS, UNIT = 4, 32, 16, 4, -5
OUTLIERS = 20  # in a tile of 4096 weights: 0.49 %
# scale step and minimum, zero step and minimum: codes 0 to 15 become weights of about 0.015
STATS = (0.002, 0.08, 0.06, 7.0)
SIGMA = 0.02


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    def config(self, layers: int | None, context: int) -> LlamaConfig:
        """Transformers' configuration, of some of the layers."""
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, max_position_embeddings=max(context, 8192), rms_norm_eps=1e-5,
            rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, dtype=torch.bfloat16,
            tie_word_embeddings=False,
        )  # fmt: skip


SHAPES = {
    "llama-8b": Shape(128256, 4096, 14336, 32, 32, 8),
    "llama-30b": Shape(32000, 6656, 17920, 60, 52, 52),
    "tiny": Shape(512, 256, 768, 2, 4, 4),
}


def made(config: LlamaConfig, device: str) -> Any:
    """A model in bfloat16 on this device, "meta" too."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def compress_from_host(model: Any, device: str) -> float:
    """Compress every linear and embedding weight, each brought from host memory; returns the seconds."""
    host = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            weight = module.weight.detach().cpu()
            host[name] = weight if device == "cpu" else weight.pin_memory()
            module.weight = None
    _wait(device)
    started = time.perf_counter()
    for name, weight in host.items():
        _compress(model.get_submodule(name), weight.to(device, non_blocking=True))
    _wait(device)
    return time.perf_counter() - started


def quantized_model(config: LlamaConfig, device: str) -> Any:
    """A quantised model in the layout for products, on `device`; the head is quantised, the embedding lossless."""
    model = made(config, "meta")
    torch.manual_seed(0)
    for layer in (*model.model.layers, model.lm_head):
        for module in list(layer.modules()):
            if isinstance(module, torch.nn.Linear):
                _quantize(module, device)
        lay_out(layer, "fast", device_type=device)
    table = torch.randn(config.vocab_size, config.hidden_size, device=device, dtype=torch.bfloat16) * SIGMA
    _compress(model.model.embed_tokens, table)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:  # of the norms
                ones = torch.ones(parameter.shape, device=device, dtype=torch.bfloat16)
                module.register_parameter(name, torch.nn.Parameter(ones, requires_grad=False))
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def _compress(module: torch.nn.Module, weight: torch.Tensor) -> None:
    tiles, offsets, book = torch.ops.tersor.huffman_encode(weight)
    entry = TensorEntry(CODEC_HUFFMAN, "BF16", tuple(weight.shape), "0" * 64)
    compress(module, "weight", entry, {"weight_tiles": tiles, "weight_offsets": offsets, "weight_book": book})


def _quantize(module: torch.nn.Linear, device: str) -> None:
    """Give a layer random stored arrays on grids in place of its weight."""
    rows, cols = module.weight.shape
    tiles, groups, runs = Grid(rows, cols).tiles, cols // GROUP, -(-rows // RUN)
    if rows % TILE_ROWS or cols % TILE_COLS:
        raise ValueError(f"{rows} x {cols}: outliers are dealt out to whole tiles")

    def bytes_of(*shape: int) -> torch.Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, device=device)

    stats = torch.tensor(STATS, device=device).half().view(torch.int16).expand(runs, groups, 4).contiguous()
    each = TILE_ROWS * TILE_COLS // OUTLIERS
    place = torch.randint(each, (tiles, OUTLIERS), device=device) + each * torch.arange(
        OUTLIERS, device=device
    )
    delta = torch.randn(tiles * OUTLIERS, device=device).half()
    parameters = SpqrParameters(BITS, GROUP, RUN, STAT_BITS, UNIT, False, tiles * OUTLIERS, "0" * 64)
    parts = {
        "weight_codes": bytes_of(rows, row_bytes(cols, BITS)),
        "weight_levels": bytes_of(rows, row_bytes(2 * groups, STAT_BITS)),
        "weight_stats": stats.view(torch.uint16),
        "weight_counts": torch.full((tiles,), OUTLIERS, dtype=torch.int16, device=device).view(torch.uint16),
        "weight_places": place.to(torch.int16).view(torch.uint16).view(-1),
        "weight_deltas": delta.view(torch.uint16),
    }
    entry = TensorEntry(CODEC_SPQR, "BF16", (rows, cols), "0" * 64, parameters)
    compress(module, "weight", entry, parts)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
