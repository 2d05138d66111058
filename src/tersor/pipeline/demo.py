"""`tersor demo`: the whole story on a small trained model that ships with the package, offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from tersor.format.errors import VerificationError
from tersor.pipeline.compress import CompressResult, compress
from tersor.pipeline.decompress import decompress
from tersor.pipeline.generate import Generation, Generator
from tersor.pipeline.verify import VerifyResult, verify

PROMPT = "The river rises in the mountains of"
NEW_TOKENS = 48
TEMPERATURE = 0.8  # sampled with the same seed: greedy text of so small a model goes in circles

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What was seen: the job, the proof, whether the file came back, and what both models said."""

    compressed: CompressResult
    verified: VerifyResult
    same_file_after_decompress: bool
    original: Generation | None
    tersor: Generation | None

    @property
    def same_tokens(self) -> bool | None:
        """Whether both models generated the same tokens; None if Transformers is not installed."""
        if self.original is None or self.tersor is None:
            return None
        return self.original.tokens == self.tersor.tokens


def demo(work: Path, tell: Tell) -> DemoResult:
    """Compress, verify, decompress and run the shipped model in the directory `work`; `tell` hears each step."""
    with as_file(files("tersor") / "demo_model") as model:
        return _demo(Path(model), work, tell)


def _demo(model: Path, work: Path, tell: Tell) -> DemoResult:
    tell("compressing")
    made = compress(model, work / "compressed")
    tell("verifying: decode all, compare every SHA-256 and every bit")
    proof = verify(made.path, against=model)
    if not proof.ok:
        raise VerificationError(f"the demo model did not come back: {proof.failures[0].message}")
    tell("decompressing")
    back = decompress(made.path, work / "restored").path
    same = (back / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    if find_spec("transformers") is None or find_spec("torch") is None:
        return DemoResult(made, proof, same, None, None)
    tell("generating from the original")
    original = Generator(model, "cpu").generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE)
    tell("generating from the compressed model")
    ours = Generator(made.path, "cpu").generate(PROMPT, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE)
    return DemoResult(made, proof, same, original, ours)
