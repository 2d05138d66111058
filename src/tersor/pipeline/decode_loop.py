"""Greedy decoding of one sequence with a static cache, as one CUDA graph per token.

At batch 1 a product takes ten to sixty microseconds, and Python needs about as long to ask for
it: without a graph, a model is as slow as its launches, whatever its weights weigh. So one step
(embedding to argmax) is captured once and replayed. The cache is Transformers' `StaticCache`,
which keeps its length in a tensor on the device, so a replay advances by itself and nothing
waits for the GPU until the tokens are wanted. Layers of a sliding window or of linear attention count
in Python as well, and a replay would stay at one position: with those, every step is run.

A captured step attends through `tersor::decode_attention` where that serves the model, because the
mask of a static cache keeps Transformers' own attention from every kernel that knows grouped queries: over
2048 positions it copied keys and values for each query head, half a layer's time.

With `fuse`, torch compiles the step first: normalisations, rotations and activations, dozens of
small kernels in every layer, become a few. The products stay what they are. Results then differ
in their last bits, with plain weights as with compressed ones, and the first token waits for the
compiler.

Weights that products need decoded, in the exact forms, are decoded ahead, between products and beside
attention and small kernels (`tersor.nn.ahead`). The captured step's own kernels therefore have a higher
priority: they go first.

The same loop serves the plain and the compressed model, so that their speeds compare. On the
CPU, or where a model cannot be captured, the step simply runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.nn.ahead import whole_calls

_WARM_UP = 3  # steps before capture: kernels are compiled and libraries choose their algorithms
_BEFORE_CAPTURE = _WARM_UP + 2  # tokens that the cache takes until then: with the prompt and one trial
_WIDEST = 512  # logits that one reduction looks at
_FIRST = -1  # priority of a stream before the usual ones


@dataclass(frozen=True)
class Decoded:
    """New tokens (the first one from the prompt's processing), and the seconds that the later ones took."""

    tokens: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Speed of the steps after the prompt."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0


def most_likely(logits: Tensor) -> Tensor:
    """The first of the largest logits (1, V), as (1, 1): in two stages, since torch gives one row to one block."""
    width = next(n for n in range(_WIDEST, 0, -1) if logits.shape[1] % n == 0)
    if width * _WIDEST < logits.shape[1]:
        return logits.argmax(-1, keepdim=True)
    largest, column = logits.view(-1, width).max(-1)
    row = largest.argmax(0, keepdim=True)
    return (row * width + column.gather(0, row)).view(1, 1)


def replays(cache: Any) -> bool:
    """Whether a captured step over this static cache advances by itself: whether all its state is on the device."""
    from transformers.cache_utils import StaticLayer

    return all(type(layer) is StaticLayer for layer in cache.layers)


class DecodeLoop:
    """Greedy decoding of `model` for prompts that, with their continuation, fit `length` tokens."""

    def __init__(
        self,
        model: Any,
        length: int,
        graph: bool | None = None,
        fuse: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`graph`: capture the step as a CUDA graph, by default on a GPU if that can be; `fuse`: compile it first.

        options: of torch's compiler (`torch._inductor.list_options()`), if it compiles.
        """
        self._model = model
        self._next: Callable[[Tensor], Tensor] = self._eager_next
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext
        if fuse:
            self._next = torch.compile(
                self._eager_next, dynamic=False, options=dict(options) if options else None
            )
            self._around = lambda: whole_calls(model)
        self._device = next(model.parameters()).device
        self._length = length
        self._cache = self._new_cache()
        self._token = torch.zeros((1, 1), dtype=torch.long, device=self._device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph and not replays(self._cache):
            raise ValueError(
                f"a step of {type(model).__name__} cannot be captured: its cache counts in Python"
            )
        able = self._device.type == "cuda" and replays(self._cache)
        self._wants_graph = able if graph is None else graph

    @property
    def length(self) -> int:
        """Tokens that the cache has room for."""
        return self._length

    @torch.inference_mode()
    def run(self, ids: Tensor, new_tokens: int) -> Decoded:
        """Continue `ids` (1, n) by exactly `new_tokens` tokens."""
        self._prepare(ids, new_tokens)
        out = torch.zeros(new_tokens, dtype=torch.long, device=self._device)
        started = self._now()
        self._rewind()
        self._prefill(ids.to(self._device))
        out[0] = self._token[0, 0]
        middle = self._now()
        for i in range(1, new_tokens):
            self._advance()
            out[i] = self._token[0, 0]
        ended = self._now()
        return Decoded(tuple(out.tolist()), middle - started, ended - middle)

    @torch.inference_mode()
    def tokens(self, ids: Tensor, limit: int) -> Iterator[int]:
        """Continue `ids` (1, n) by up to `limit` tokens, each given out while the GPU computes the next.

        Whoever has enough asks for no more. One iteration at a time: a loop has one cache.
        """
        self._prepare(ids, limit)
        self._rewind()
        self._prefill(ids.to(self._device))
        token = self._on_its_way()
        for _ in range(1, limit):
            self._advance()
            following = self._on_its_way()
            yield token()
            token = following
        yield token()

    def _prepare(self, ids: Tensor, new_tokens: int) -> None:
        if ids.shape[1] + new_tokens > self._length:
            raise ValueError(f"{ids.shape[1]} + {new_tokens} tokens do not fit a cache of {self._length}")
        if self._wants_graph and self._graph is None:
            self._capture()

    def _advance(self) -> None:
        self._graph.replay() if self._graph is not None else self._step()

    def _on_its_way(self) -> Callable[[], int]:
        """The newest token, to be read when it has come to the host; until then the GPU may go on."""
        if self._device.type != "cuda":
            token = int(self._token)
            return lambda: token
        host = torch.empty(1, dtype=torch.long, pin_memory=True)
        host.copy_(self._token.view(1), non_blocking=True)
        came = torch.cuda.Event()  # type: ignore[no-untyped-call]
        came.record()

        def read() -> int:
            came.synchronize()
            return int(host)

        return read

    def _prefill(self, ids: Tensor) -> None:
        logits = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits
        self._token.copy_(most_likely(logits[:, -1]))

    def _eager_next(self, token: Tensor) -> Tensor:
        logits = self._model(input_ids=token, past_key_values=self._cache, use_cache=True).logits
        return most_likely(logits[:, -1])

    def _step(self) -> None:
        with self._around():
            self._token.copy_(self._next(self._token))

    def _new_cache(self) -> Any:
        from transformers import StaticCache

        return StaticCache(config=self._model.config, max_cache_len=max(self._length, _BEFORE_CAPTURE))

    def _rewind(self) -> None:
        """Forget the cache's contents; its buffers stay where a graph knows them."""
        if not replays(self._cache):  # resetting linear attention does not make it forget everything
            self._cache = self._new_cache()
        for layer in self._cache.layers:
            if getattr(layer, "is_initialized", False):
                layer.reset()

    def _capture(self) -> None:
        self._rewind()
        self._prefill(torch.zeros((1, 1), dtype=torch.long, device=self._device))
        side = torch.cuda.Stream(priority=_FIRST)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        with self._decode_attention():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, stream=side):
                self._step()
        self._graph = graph

    @contextmanager
    def _decode_attention(self) -> Iterator[None]:
        """Attention of the steps inside, if the model's own can be replaced by the operator for single tokens."""
        from tersor.integrations.transformers.attention import DECODE_ATTENTION, serves

        own = self._model.config._attn_implementation
        try:
            if serves(self._model, self._cache):
                self._model.set_attn_implementation(DECODE_ATTENTION)
                try:
                    self._eager_next(self._token)
                except NotImplementedError:  # an attention with something beyond the plain softmax
                    self._model.set_attn_implementation(own)
            yield
        finally:
            self._model.set_attn_implementation(own)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
