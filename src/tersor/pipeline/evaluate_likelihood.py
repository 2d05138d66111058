"""Log-likelihoods of continuations, with lm-eval's conventions.

Spaces at the end of a context move to the continuation. Both are tokenised *together*, and the
continuation's tokens are what the context's own tokens leave, so that a token across the seam counts as
it would in running text. Too long a context loses its beginning.

Pairs are worked in batches of like length, longest first, so that running out of memory shows at once.
Padding is on the right: under a causal mask it cannot reach the tokens that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BATCH_TOKENS = 4096  # padded; keeps float32 logits of a 128k vocabulary at 2 GB


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation: log-probability in nats, and whether every token was the most likely one."""

    logprob: float
    greedy: bool
    tokens: int


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of context and continuation; an empty context becomes the begin (or end) mark."""
    trailing = len(context) - len(context.rstrip())
    if trailing:
        context, continuation = context[:-trailing], context[-trailing:] + continuation
    if not context:
        mark = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [mark], tokenizer(continuation, add_special_tokens=False)["input_ids"]
    whole = tokenizer(context + continuation)["input_ids"]
    head = tokenizer(context)["input_ids"]
    return whole[: len(head)], whole[len(head) :]


def likelihood(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    length: int,
    batch_tokens: int = BATCH_TOKENS,
    step: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """Score (context, continuation) pairs, in order; `length` is the largest context in tokens."""
    import torch

    device = next(model.parameters()).device
    encoded = [encode_pair(tokenizer, *pair) for pair in pairs]
    # the last token is only predicted, never read
    inputs = [(head + tail)[-(length + 1) :][:-1] for head, tail in encoded]
    results: list[Likelihood | None] = [None] * len(pairs)
    queue = sorted(range(len(pairs)), key=lambda i: (-len(inputs[i]), i))
    while queue:
        size = max(1, batch_tokens // max(len(inputs[queue[0]]), 1))
        batch, queue = queue[:size], queue[size:]
        width = len(inputs[batch[0]])
        ids = torch.tensor([inputs[i] + [0] * (width - len(inputs[i])) for i in batch], device=device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits.detach()
        for row, i in enumerate(batch):
            tail = encoded[i][1][-length:]
            stop = len(inputs[i])
            logprobs = logits[row, stop - len(tail) : stop].float().log_softmax(-1)
            target = torch.tensor(tail, device=device, dtype=torch.int64)
            chosen = logprobs.gather(-1, target[:, None])
            greedy = bool((logprobs.argmax(-1) == target).all())
            results[i] = Likelihood(float(chosen.sum()), greedy, len(tail))
        if step:
            step(len(pairs) - len(queue), len(pairs))
    return [result for result in results if result is not None]
