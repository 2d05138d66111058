"""The model to quantise: its tokens, its blocks, and where its matrices are in the checkpoint.

A goal that needs no measurement of the whole model reads it block by block (`quantize.lazy`), so that it
may be larger than memory. One that does, or a model whose names on disk are not those in memory, is
loaded whole.

On a CPU everything is computed in float32, which is as fast there as bfloat16; weights are rounded to
their own type all the same. On a GPU the model's own type is used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.codec.quantized.parts import Matrix
from tersor.codec.quantized.rows import cut_rows
from tersor.format.checkpoint import Checkpoint
from tersor.format.dtypes import QUANTIZABLE
from tersor.format.errors import UsageError
from tersor.format.layout import SUFFIXES
from tersor.pipeline.generate import require_transformers
from tersor.quantize.method import Method
from tersor.quantize.settings import Settings

if TYPE_CHECKING:
    import torch

    from tersor.quantize.lazy import Lazy

log = logging.getLogger(__name__)

_LONGEST = 2048  # tokens of a sequence, as in the paper


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint is among the quantiser's matrices: rows `first` to `stop` of one."""

    matrix: str
    first: int
    stop: int

    def of(self, q: Matrix) -> Matrix:
        """The tensor's part of its quantised matrix."""
        return q if (self.first, self.stop) == (0, q.shape[0]) else cut_rows(q, self.first, self.stop)


@dataclass(frozen=True)
class Opened:
    """A causal language model ready to be quantised; `places` are the tensors that can be."""

    model: Any
    lazy: Lazy | None
    served: torch.dtype
    places: Mapping[str, Place]

    def matrices(self) -> list[str]:
        """The quantiser's matrices that hold tensors of the checkpoint, sorted."""
        return sorted({place.matrix for place in self.places.values()})

    def weights(self) -> int:
        """Weights in all of them."""
        found = matrices_of(self.model)
        return sum(found[name].numel() for name in self.matrices())

    def allows(self, matrix: str, method: Method) -> bool:
        """Whether a matrix can be quantised so: a tensor that is cut out of it must begin with a grid."""
        own = [place for place in self.places.values() if place.matrix == matrix]
        run = method.run if isinstance(method, Settings) else 1
        return bool(own) and all(place.first % run == 0 for place in own)


def matrices_of(model: Any) -> dict[str, torch.Tensor]:
    """Every matrix that the quantiser finds in the model's blocks, by its name there."""
    from tersor.quantize.blocks import find_stacks, find_targets

    return {
        target.name: target.weight
        for stack in find_stacks(model)
        for number, block in enumerate(stack.blocks)
        for target in find_targets(block, f"{stack.name}.{number}")
    }


def load_tokenizer(path: Path) -> Any:
    """The model's tokenizer; from here on Transformers is quiet, our own progress is shown."""
    transformers = require_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: Transformers cannot load its tokenizer: {error}") from error


def sequence_length(path: Path, wanted: int | None) -> int:
    """Tokens of a sequence: those wanted, or the model's context, at most 2048."""
    transformers = require_transformers()
    config = transformers.AutoConfig.from_pretrained(path)
    context = getattr(config, "max_position_embeddings", None) or _LONGEST
    if wanted is not None and wanted > context:
        raise UsageError(f"sequences of {wanted} tokens are longer than the model's context of {context}")
    return wanted or min(context, _LONGEST)


def open_model(source: Checkpoint, device: str, whole: bool) -> Opened:
    """Open the model of a checkpoint, whole or, if that is possible, block by block."""
    import torch

    from tersor.quantize.lazy import open_lazily

    dtype = torch.float32 if device == "cpu" else None
    if not whole:
        try:
            model, lazy = open_lazily(source.path, dtype)
        except UsageError as error:
            log.info("%s; loading it whole", error)
        else:
            if _readable(model, lazy):
                return _opened(model, lazy, source)
            log.info("%s: its names on disk are not the model's; loading it whole", source.path)
    transformers = require_transformers()
    try:
        loader = transformers.AutoModelForCausalLM
        model = loader.from_pretrained(source.path, dtype=dtype or "auto").to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{source.path}: Transformers cannot load it as a causal language model, and only these can be "
            f"quantised: {error}"
        ) from error
    return _opened(model, None, source)


def _readable(model: Any, lazy: Lazy) -> bool:
    """Whether every tensor of every block is found by its name."""
    from tersor.quantize.blocks import find_stacks

    return all(
        lazy.holds(f"{stack.name}.{number}.{key}")
        for stack in find_stacks(model)
        for number, block in enumerate(stack.blocks)
        for key in block.state_dict()
    )


def _opened(model: Any, lazy: Lazy | None, source: Checkpoint) -> Opened:
    import torch

    places = _places(model, source)
    extents = {name: shard.tensors[name] for shard, name in source.tensors()}
    dtypes = Counter(extents[name].dtype for name in places)
    if not dtypes:
        raise UsageError(
            f"{source.path}: none of its tensors is a matrix of BF16, F16 or F32 inside a block of the model"
        )
    dtype = dtypes.most_common(1)[0][0]  # of a model that mixes types the rest stays lossless
    served = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    return Opened(model, lazy, served, {n: p for n, p in places.items() if extents[n].dtype == dtype})


def _places(model: Any, source: Checkpoint) -> dict[str, Place]:
    """The checkpoint's tensors that are matrices of the model, or rows of one."""
    from tersor.integrations.transformers.homes import Homes, concatenated, projection

    extents = {name: shard.tensors[name] for shard, name in source.tensors()}
    shapes = {name: tuple(weight.shape) for name, weight in matrices_of(model).items()}
    pieces: dict[str, list[tuple[int, str]]] = {}
    for name, home in Homes(model).find(extents).items():
        if home.converter is None:
            pieces.setdefault(home.parameter, []).append((0, name))
        elif home.path is not None and concatenated(home.converter) == 0:
            expert, _, tail = home.path.partition(".")
            order = [projection(pattern) for pattern in home.converter.source_patterns].index(tail)
            pieces.setdefault(f"{home.parameter}.{expert}", []).append((order, name))
    places: dict[str, Place] = {}
    for matrix, shape in shapes.items():
        names = [name for _, name in sorted(pieces.get(matrix, []))]
        if names and _fill(shape, [extents[name].shape for name in names]):
            first = 0
            for name in names:
                places[name] = Place(matrix, first, first := first + extents[name].shape[0])
    taken = {name for name in places if any(name + suffix in extents for suffix in SUFFIXES)}
    odd = {n for n in places if n in taken or extents[n].dtype not in QUANTIZABLE}
    lost = {places[name].matrix for name in odd}
    return {name: place for name, place in places.items() if place.matrix not in lost}


def _fill(shape: tuple[int, ...], parts: list[tuple[int, ...]]) -> bool:
    """Whether matrices of these shapes, one below the other, make one of `shape`."""
    return all(len(p) == 2 and p[1] == shape[1] for p in parts) and sum(p[0] for p in parts) == shape[0]
