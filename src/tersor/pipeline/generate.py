"""Load a model with Transformers and generate, the same way for plain and compressed ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tersor.format.errors import MissingDependency, TersorError, UsageError
from tersor.pipeline.device import resolve_device
from tersor.pipeline.source import local_path

if TYPE_CHECKING:
    import torch

    from tersor.nn.layouts import Layout
    from tersor.pipeline.decode_loop import DecodeLoop

_CACHE_STEP = 256  # tokens by which the decode loop's cache grows, so that it serves several prompts


@dataclass(frozen=True)
class Generation:
    """What a model said: the prompt's and the new tokens, the new text, and how long it took."""

    model: Path
    device: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    seconds: float
    weight_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, the prompt's processing included."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0


def require_transformers() -> Any:
    """The transformers module, with tersor registered in it; MissingDependency if it is not installed."""
    try:
        import transformers

        import tersor.integrations.transformers  # noqa: F401  (registers, also where the entry point is switched off)
    except ImportError as error:
        raise MissingDependency(
            f"{error.name or error} is not installed, and running a model needs it: pip install 'tersor[hf,cpu]'"
        ) from error
    return transformers


class Generator:
    """A loaded model with its tokenizer. `device` is "cpu", "cuda" or "auto"."""

    def __init__(
        self, model: str | Path, device: str = "auto", layout: str = "auto", exact: bool = False
    ) -> None:
        """Load `model` (directory or Hub id), plain or compressed; `layout` and `exact` as in TersorConfig."""
        transformers = require_transformers()
        from tersor.nn import lay_out

        self.path = local_path(str(model))
        if self.path.is_file():
            raise UsageError(
                f"{self.path}: is a single file; running needs a model directory with config and tokenizer"
            )
        self.device = resolve_device(device)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(self.path, dtype="auto")
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self.path}: Transformers cannot load it: {error}") from error
        self.model = loaded.to(self.device).eval()
        self._exact = exact
        self._loop: DecodeLoop | None = None
        self._loop_failed = False  # it would fail again
        lay_out(self.model, cast("Layout", layout), exact)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers as they lie in memory, each counted once."""
        held = {t.data_ptr(): t.nbytes for t in [*self.model.parameters(), *self.model.buffers()]}
        return sum(held.values())

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue `prompt` (as a user's turn if `chat`); greedy when `temperature` is 0."""
        transformers = require_transformers()
        import torch

        ids = self.prompt_ids(prompt, chat).to(self.device)
        torch.manual_seed(seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature}
        streamer = _streamer(transformers, self._tokenizer, on_text) if on_text else None
        started = time.monotonic()
        new = None
        if temperature == 0 and self._loops():
            new = self._greedy(ids, max_new_tokens, streamer)
        if new is None:
            with torch.inference_mode():
                output = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
                    streamer=streamer,
                    **sampling,
                )
            new = output[0, ids.shape[1] :].tolist()
        seconds = time.monotonic() - started
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        return Generation(self.path, self.device, ids.shape[1], tuple(new), text, seconds, self.weight_bytes)

    def _loops(self) -> bool:
        """Whether the decode loop with its CUDA graph says what `generate` would, greedily.

        Not where the plain model's bits are wanted: a static cache is attended to by other kernels.
        """
        if self._loop_failed or not self.device.startswith("cuda"):
            return False
        return not self._exact and decodes_plainly(self.model)

    def _greedy(self, ids: torch.Tensor, limit: int, streamer: Any) -> list[int] | None:
        """Up to `limit` tokens by the decode loop; None if it cannot give the first one.

        The loop is for speed alone, so whatever a model does that a static cache or a capture does not allow
        leaves the work to Transformers' `generate`, which raises again what was no fault of the loop. Our own
        errors are raised at once: a kernel that cannot run will not run there either. So is everything after the
        first token, which may have been shown already.
        """
        import torch

        from tersor.pipeline.decode_loop import DecodeLoop

        needed = ids.shape[1] + limit
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        try:
            if self._loop is None or self._loop.length < needed:
                self._loop = DecodeLoop(self.model, -(-needed // _CACHE_STEP) * _CACHE_STEP)
            tokens = self._loop.tokens(ids, limit)
            new = [next(tokens)]
        except TersorError:
            raise
        except Exception as error:
            known = isinstance(error, RuntimeError)  # what torch raises while capturing, or out of memory
            logging.getLogger(__name__).log(
                logging.INFO if known else logging.WARNING,
                "%s runs without a CUDA graph, by Transformers' generate: %s: %s",
                type(self.model).__name__, type(error).__name__, error,
            )  # fmt: skip
            self._loop = None
            self._loop_failed = not isinstance(error, torch.OutOfMemoryError)
            return None
        if streamer:
            streamer.put(ids.cpu())  # which it skips
            streamer.put(torch.tensor(new))
        while new[-1] not in stops and (token := next(tokens, None)) is not None:
            new.append(token)
            if streamer:
                streamer.put(torch.tensor([token]))
        if streamer:
            streamer.end()
        return new

    def prompt_ids(self, prompt: str, chat: bool = False) -> torch.Tensor:
        """The prompt's tokens (1, n), as a user's turn if `chat`."""
        if not chat:
            ids: torch.Tensor = self._tokenizer(prompt, return_tensors="pt").input_ids
            if not ids.shape[1]:
                raise UsageError("the prompt is empty; give at least one token")
            return ids
        if not self._tokenizer.chat_template:
            raise UsageError(f"{self.path}: has no chat template; leave --chat out")
        turns = [{"role": "user", "content": prompt}]
        encoded = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        chat_ids: torch.Tensor = encoded["input_ids"]
        return chat_ids


def decodes_plainly(model: Any) -> bool:
    """Whether greedy decoding of `model` is the likeliest token each time, and its step can be captured.

    A checkpoint's generation settings may ask for more (penalties, forced or suppressed tokens),
    some models' forward waits for the GPU (Transformers knows which) or reads its routing, and some
    caches count in Python.
    """
    from transformers import StaticCache

    from tersor.nn import CompressedExperts
    from tersor.pipeline.decode_loop import replays

    settings = model.generation_config
    asks = any(getattr(settings, name, None) not in neutral for name, neutral in _NEUTRAL.items())
    experts = any(isinstance(module, CompressedExperts) for module in model.modules())
    if asks or experts or not getattr(model, "_can_compile_fullgraph", False):
        return False
    return replays(StaticCache(config=model.config, max_cache_len=1))


_UNSET: tuple[Any, ...] = (None, False, 0, [], {})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "min_length", "min_new_tokens", "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id",
            "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
            "sequence_bias", "watermarking_config", "stop_strings", "prompt_lookup_num_tokens", "dola_layers",
            "penalty_alpha", "remove_invalid_values", "token_healing", "max_time", "encoder_no_repeat_ngram_size",
        ),
        _UNSET,
    ),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), (None, 1, 1.0)),
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), (None, 1)),
}  # fmt: skip


def _streamer(transformers: Any, tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    class Streamer(transformers.TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
