"""Train a language model like the one that ships with tersor, from plain text files.

    python examples/train_demo_model.py TEXT [TEXT ...] --out DIR [--minutes 5]

A byte-level BPE of 2048 tokens is made from the texts, then a Llama of 1.05 million parameters is
trained on windows of 512 tokens: AdamW (0.9, 0.95), weight decay 0.1 on matrices, learning rate
0.004 with 150 steps of warm-up and a cosine to 2 % over the time given, gradient norm clipped at
1, float32 weights rounded once to bfloat16 at the end. The shipped model (src/tersor/demo_model,
its README tells the corpus) saw 589 million tokens in 50 seconds on one H200 with this recipe;
a CPU gives something readable in an hour. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 512
VOCABULARY = 2048
PEAK_RATE, FINAL_SHARE, WARM_UP = 0.004, 0.02, 150
SPECIAL = ["<s>", "</s>", "<pad>"]


def train_tokenizer(texts: list[Path]) -> PreTrainedTokenizerFast:
    """A lossless byte-level BPE over the texts; it adds no special tokens by itself."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(t) for t in texts], vocab_size=VOCABULARY, special_tokens=SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def new_model() -> LlamaForCausalLM:
    """The architecture of the shipped model, freshly initialised."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():  # smaller where blocks add to the residual stream
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_hidden_layers))
    return model


def windows(tokens: torch.Tensor, batch: int) -> Iterator[torch.Tensor]:
    """Batches (batch, 512) of windows, every epoch in a new order at a new offset."""
    while True:
        offset = int(torch.randint(0, CONTEXT, ()))
        starts = offset + CONTEXT * torch.randperm((len(tokens) - offset) // CONTEXT)
        for i in range(0, len(starts) - batch + 1, batch):
            yield torch.stack([tokens[s : s + CONTEXT] for s in starts[i : i + batch].tolist()])


def learning_rate(step: int, progress: float) -> float:
    """Warm-up over 150 steps, then a cosine over the time budget (`progress` from 0 to 1)."""
    cosine = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return PEAK_RATE * min(cosine, (step + 1) / WARM_UP)


def train(model: LlamaForCausalLM, tokens: torch.Tensor, seconds: float, batch: int, device: str) -> float:
    """Train for `seconds`; returns the mean loss of the last steps."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    started, recent = time.monotonic(), 0.0
    for step, window in enumerate(windows(tokens, batch)):
        progress = (time.monotonic() - started) / seconds
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        with torch.autocast(device, torch.bfloat16):
            ids = window.to(device)
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"step {step:5}  {100 * progress:3.0f} %  loss {recent:.3f}", flush=True)
    return recent


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", type=Path, help="UTF-8 text files")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--minutes", type=float, default=5, help="training time")
    parser.add_argument("--batch", type=int, default=192, help="windows in a step")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(options.texts)
    text = "".join(f"<s>{t.read_text('utf-8')}</s>" for t in options.texts)
    tokens = torch.tensor(tokenizer(text).input_ids)
    batch = min(options.batch, max(1, len(tokens) // CONTEXT - 1))
    model = new_model().to(device)
    print(f"{len(tokens):,} tokens, {model.num_parameters():,} parameters, on {device}")
    train(model, tokens, 60 * options.minutes, batch, device)
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main()
