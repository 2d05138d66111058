"""`--dtype`: quantised and lossless weights decoded to their own bits, then cast; a GPU's numbers are a CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tersor.format.errors import UsageError  # noqa: E402
from tersor.kernels.fused import device as fused  # noqa: E402
from tersor.kernels.tile import device as tile  # noqa: E402
from tersor.nn import CompressedLinear, lay_out  # noqa: E402
from tersor.nn.fused import Fused  # noqa: E402
from tersor.pipeline.compress import compress  # noqa: E402
from tersor.pipeline.decompress import decompress  # noqa: E402
from tersor.pipeline.device import Arithmetic  # noqa: E402
from tersor.pipeline.evaluate_model import ModelEvaluation, evaluate_model  # noqa: E402
from tersor.pipeline.near_lossless.goal import Calibration, one_method  # noqa: E402
from tersor.pipeline.near_lossless.job import compress_near_lossless  # noqa: E402

LENGTH = 128
SENTENCES = (
    "The river rises in the mountains and flows to the sea .",
    "In the year of the great flood the town was built again on the hill .",
    "He was born in the north and became a teacher of music .",
)
KINDS = pytest.mark.parametrize("kind", ["lossless", "spqr", "integers"])

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text("\n".join(SENTENCES[i % 3] for i in range(60)))
    return path


@pytest.fixture(scope="module")
def make(demo_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """kind -> the demo model, compressed so; quantised to 4 bits."""
    root = tmp_path_factory.mktemp("made")

    def run(kind: Any) -> Path:
        path: Path = root / kind
        if path.exists():
            return path
        if kind == "lossless":
            return compress(demo_model, path).path
        goal = one_method(kind, 4)
        return compress_near_lossless(
            demo_model, path, goal, Calibration(text, sequences=4, length=64)
        ).compressed.path

    return run


def measured(model: Path, text: Path, dtype: Arithmetic, **options: Any) -> ModelEvaluation:
    return evaluate_model(model, texts=[text], length=LENGTH, dtype=dtype, **options)


def perplexity(found: ModelEvaluation) -> float:
    (text,) = found.results.texts.values()
    return text.perplexity


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_arithmetic_is_the_plain_models(
    kind: str, dtype: Arithmetic, make: Make, text: Path, tmp_path: Path
) -> None:
    """The checkpoint against what it decompresses to, both cast: no bit of a weight is lost on the way."""
    decompress(make(kind), tmp_path / "plain")
    found = measured(make(kind), text, dtype, against=tmp_path / "plain", device="cpu")
    assert found.dtype == dtype
    (far,) = found.results.divergences.values()
    assert far.kl_max == far.excess_loss == 0
    assert far.same_top == 1


def test_auto_is_what_the_checkpoint_names(make: Make, text: Path) -> None:
    auto, named = (measured(make("spqr"), text, dtype, device="cpu") for dtype in ("auto", "bfloat16"))
    wide = measured(make("spqr"), text, "float32", device="cpu")
    assert (auto.dtype, wide.dtype) == ("bfloat16", "float32")
    assert perplexity(auto) == perplexity(named) != perplexity(wide)
    assert perplexity(auto) == pytest.approx(perplexity(wide), rel=1e-2)


@KINDS
def test_what_is_loaded_in_float32_is_never_fused(kind: str, make: Make) -> None:
    """Neither when a fast layout is asked for, nor when what lies in one is cast: the same logits both ways."""
    path, ids = make(kind), torch.arange(3, 35)[None]
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    expected = model(ids).logits
    assert expected.dtype == torch.float32
    assert lay_out(model, "fast", device_type="cpu") == 0
    assert torch.equal(model(ids).logits, expected)

    laid = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert lay_out(laid, "fast", device_type="cpu") > 0  # of integers, the head
    laid.to(torch.float32)
    sources = [m.compressed["weight"] for m in laid.modules() if isinstance(m, CompressedLinear)]
    assert not any(isinstance(s, Fused) and s.multiplies(torch.empty(1)) for s in sources)
    assert torch.equal(laid(ids).logits, expected)


@pytest.mark.gpu
@KINDS
def test_a_gpu_measures_what_a_cpu_does(
    kind: str, make: Make, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To three decimals in float32, and without a kernel that multiplies in bfloat16."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a fused product in float32")

    monkeypatch.setattr(fused, "linear", refuse)
    monkeypatch.setattr(tile, "tile_linear", refuse)
    on_cpu, on_gpu = (measured(make(kind), text, "float32", device=device) for device in ("cpu", "cuda"))
    assert abs(perplexity(on_cpu) - perplexity(on_gpu)) < 5e-4


def test_an_unknown_arithmetic_is_refused(demo_model: Path, text: Path) -> None:
    unknown: Any = "float31"
    with pytest.raises(UsageError, match="float31"):
        measured(demo_model, text, unknown, device="cpu")
