"""DFloat11's own encoder, where its package is installed (its decoder needs a GPU and CuPy, this does not)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tersor.kernels.dfloat11.encode import Code
from tersor.kernels.dfloat11.layout import BLOCK_WINDOWS, WINDOW_BYTES, Buffers


def is_installed() -> bool:
    """Whether the package and what its encoder imports are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("dfloat11", "dahuffman", "tqdm"))


@dataclass(frozen=True)
class Official:
    """What their encoder makes of one group, and the code that it chose."""

    buffers: Buffers
    code: Code


def encode(weights: list[torch.Tensor]) -> Official:
    """Encode flat bfloat16 tensors as their `compress_model` does."""
    theirs = _module()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        _, counter = theirs.get_codec(torch.cat(weights))
        codec, _, table = theirs.get_32bit_codec(counter)
        luts = theirs.get_luts(table)
        encoded, raw, positions, gaps, _ = theirs.encode_weights(weights, codec, WINDOW_BYTES, BLOCK_WINDOWS)
    lengths, codes = np.zeros((2, 256), np.int64)
    for symbol, (length, code) in table.items():
        if isinstance(symbol, int):
            lengths[symbol], codes[symbol] = length, code
    code = Code(lengths, codes, table[codec._eof])
    return Official(Buffers(luts, encoded, raw, positions.view(torch.uint8), gaps), code)


def _module() -> Any:
    """Their `dfloat11_utils`, without the package around it, which needs CuPy."""
    package = importlib.util.find_spec("dfloat11")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "dfloat11_utils.py"
    spec = importlib.util.spec_from_file_location("dfloat11_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
