"""What quantising does to the layers of a Whisper model: an encoder and a decoder, float16, never quantised before.

    python bench/whisper_layers.py MODEL --tokenizer tokenizer.json --text TEXT [METHOD ...]

There is no speech here. The encoder hears thirty seconds of made-up voices (harmonics of a wandering pitch
under moving formants, noise, pauses), through the model's own log-mel features; the decoder is given
the text as what was said. So perplexity means nothing, and what is reported are output errors of the layers,
||(W - W') X||^2 / ||W X||^2 over calibration inputs, as geometric means in dB for encoder and decoder, and
the KL divergence of the decoder's predictions from the original's on other voices and other text.
METHODs are those of near_lossless.py. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from near_lossless import method
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor, WhisperForConditionalGeneration

from tersor.codec.quantized.matrix import Bits
from tersor.quantize.calibration import draw, read_documents, tokenize
from tersor.quantize.stream import Job, LayerReport, quantize_model

RATE, SECONDS = 16000, 30
START = (50258, 50259, 50359, 50363)  # start of transcript, English, transcribe, no timestamps
METHODS = ("rtn:4", "gptq:4", "gptq:4:group=128", "spqr:3", "spqr:4", "integers:4")


def voice(seed: int) -> np.ndarray:
    """Thirty seconds that sound like somebody talking, about."""
    rng = np.random.default_rng(seed)
    n, frame = RATE * SECONDS, RATE // 100
    frames = n // frame

    def wander(low: float, high: float, speed: float) -> np.ndarray:
        steps = np.cumsum(rng.normal(0, speed, frames))
        return np.repeat(low + (high - low) * (0.5 + 0.5 * np.sin(steps + rng.uniform(0, 6))), frame)

    phase = 2 * np.pi * np.cumsum(wander(80, 250, 0.05)) / RATE
    pitch = np.gradient(phase) * RATE / (2 * np.pi)
    formants = [(wander(300, 900, 0.2), 80), (wander(900, 2300, 0.2), 120), (wander(2300, 3500, 0.1), 200)]
    sound = np.zeros(n)
    for harmonic in range(1, 30):
        f = harmonic * pitch
        gain = sum(1 / (1 + ((f - centre) / width) ** 2) for centre, width in formants)
        sound += gain * np.sin(harmonic * phase) / harmonic**0.5
    noise = rng.normal(0, 1, n) * wander(0, 0.5, 0.5)
    loud = np.clip(wander(-0.5, 1, 0.15), 0, 1)
    sound = loud * (sound + noise) + rng.normal(0, 0.003, n)
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def speaker(model: Any, extractor: Any, seed: int) -> Callable[[torch.Tensor], Any]:
    """What runs the model on token ids (1, L), to which it hears a voice of their own."""

    def run(ids: torch.Tensor) -> Any:
        heard = extractor(
            voice(seed + int(ids.sum())), sampling_rate=RATE, return_tensors="pt"
        ).input_features
        return model(input_features=heard, decoder_input_ids=ids, use_cache=False)

    return run


def decibels(reports: list[LayerReport], part: str) -> str:
    """Geometric mean of the layers' errors, and the worst."""
    errors = [10 * math.log10(r.error) for r in reports if part in r.name and r.error is not None]
    return f"{sum(errors) / len(errors):.1f} ({max(errors):.1f})"


def main() -> None:
    """Quantise by every method, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--sequences", type=int, default=12, help="to calibrate on; half as many to measure on"
    )
    options = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer))
    original: Any = WhisperForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor(feature_size=original.config.num_mel_bins)
    tokens = draw(tokenize(read_documents(options.text), tokenizer), options.sequences * 3 // 2, 400)
    start = torch.tensor(START).expand(len(tokens), -1)
    calibration, held_out = torch.cat([start, tokens], dim=1).split(
        [options.sequences, options.sequences // 2]
    )
    with torch.no_grad():
        reference = [
            speaker(original, extractor, 1)(ids[None]).logits[0, 4:].log_softmax(-1) for ids in held_out
        ]
    print(
        "| method | bits per weight | encoder, dB (worst) | decoder, dB (worst) | KL of the decoder, nats |"
    )
    print("| --- | --- | --- | --- | --- |", flush=True)
    for spelled in options.methods:
        model, chosen = copy.deepcopy(original), method(spelled)
        job = Job(lambda name, chosen=chosen: chosen, served=torch.float16)
        reports = quantize_model(model, calibration, job, speaker(model, extractor, 0))
        bits = sum((r.bits for r in reports), Bits(0, 0, 0, 0))
        far = []
        for ids, p in zip(held_out, reference, strict=True):
            with torch.no_grad():
                q = speaker(model, extractor, 1)(ids[None]).logits[0, 4:].log_softmax(-1)
            far.append(float((p.exp() * (p - q)).sum(-1).mean()))
        spread = np.std(far, ddof=1) / len(far) ** 0.5
        print(
            f"| {spelled} | {bits.per_weight:.3f} | {decibels(reports, 'encoder.layers')} "
            f"| {decibels(reports, 'decoder.layers')} | {np.mean(far):.4f} ± {spread:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
