"""What lies where an output goes and is not ours stays as it is; what is not carried over is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tersor.format.errors import OutputExists, UsageError
from tersor.pipeline.compress import compress
from tersor.pipeline.decompress import decompress
from tersor.pipeline.output import Output
from tersor.pipeline.verify import verify


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the shipped model to put things beside."""
    shutil.copytree(demo_model, tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_partial_directory_of_somebody_else(model: Path, tmp_path: Path, name: str) -> None:
    """Refused, and not a byte of it touched."""
    partial = tmp_path / f"{name}.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"mine")
    source = model / "model.safetensors" if name.endswith(".safetensors") else model
    with pytest.raises(UsageError, match="no work of tersor's"):
        compress(source, tmp_path / name)
    assert [p.name for p in partial.iterdir()] == ["model.safetensors"]
    assert (partial / "model.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / name).exists()


def test_a_file_that_appears_meanwhile(tmp_path: Path) -> None:
    """A single file is put into place only where there is none."""
    final = tmp_path / "a.safetensors"
    output = Output(final, {"job": 1})
    (output.partial / "a.safetensors").write_bytes(b"ours")
    final.write_bytes(b"theirs")
    with pytest.raises(OutputExists):
        output.finish_file("a.safetensors")
    assert final.read_bytes() == b"theirs"
    output.close()


def test_a_config_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is stopped while writing it leaves none, and the next run writes it."""
    final = tmp_path / "out"
    output = Output(final, {"job": 1})

    def stopped(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            output.finish_directory({"model_type": "llama"}, None, "unused")
    output.close()
    assert not (output.partial / "config.json").exists()
    output = Output(final, {"job": 1})
    output.finish_directory({"model_type": "llama"}, None, "unused")
    assert {p.name: json.loads(p.read_text()) for p in final.iterdir()} == {
        "config.json": {"model_type": "llama"}
    }


def test_killed_after_the_file_was_in_place(model: Path, tmp_path: Path) -> None:
    """The next run says that the output exists, and clears what was left beside it."""
    final = compress(model / "model.safetensors", tmp_path / "a.safetensors").path
    partial = tmp_path / "a.safetensors.partial"
    partial.mkdir()
    (partial / ".tersor-job.json").write_text("{}")
    (partial / "model.safetensors").hardlink_to(final)
    with pytest.raises(OutputExists):
        compress(model / "model.safetensors", final)
    assert final.exists() and not partial.exists()


def test_weights_beside_the_model_are_named(model: Path, tmp_path: Path) -> None:
    """They are left out, and the result says which."""
    (model / "extra.bin").write_bytes(b"x")
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "model.safetensors").write_bytes(b"y")
    result = compress(model, tmp_path / "out")
    assert result.left_out == ("2_Dense/model.safetensors", "extra.bin")
    assert not (result.path / "extra.bin").exists()


def test_the_file_is_meant_where_there_is_an_index_too(model: Path, tmp_path: Path) -> None:
    """Transformers takes model.safetensors then, so it is what is compressed."""
    shutil.copy(model / "model.safetensors", model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    result = compress(model, tmp_path / "out")
    assert result.left_out == ("model-00001-of-00001.safetensors",)
    decompress(result.path, tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()


def test_a_quantised_model_is_kept_but_not_run(model: Path, tmp_path: Path) -> None:
    """Its config comes back with decompress; loading it compressed would lose its scales, and is refused."""
    transformers = pytest.importorskip("transformers")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (model / "config.json").write_text(json.dumps(config))
    result = compress(model, tmp_path / "out")
    assert result.quantized_as == "fp8"
    with pytest.raises(UsageError, match=r"'fp8'.*tersor decompress"):
        transformers.AutoModelForCausalLM.from_pretrained(result.path)
    decompress(result.path, tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_against_a_compressed_model(model: Path, tmp_path: Path) -> None:
    """The original is wanted, and the message says so."""
    made = compress(model, tmp_path / "out").path
    with pytest.raises(UsageError, match="compressed itself"):
        verify(made, against=made)
