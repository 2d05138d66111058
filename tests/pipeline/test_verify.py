"""verify: what it says about a model that is not the one it is held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from crafting import Tensor, gaussian, write_model
from tersor.pipeline.compress import compress
from tersor.pipeline.verify import verify

CONTENT = {"w": gaussian((64, 64)), "b": Tensor("F32", (2,), bytes(8))}


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    return compress(write_model(tmp_path / "m", [CONTENT]), tmp_path / "c").path


@pytest.mark.parametrize(
    ("change", "tensor", "error"),
    [
        ({"w": gaussian((64, 64), seed=1)}, "w", "HashMismatch"),
        ({"b": Tensor("F32", (2,), bytes(7) + b"\x80")}, "b", "HashMismatch"),  # -0 for 0
        ({"w": gaussian((32, 128))}, "w", "WrongShape"),
        ({"b": Tensor("I32", (2,), bytes(8))}, "b", "WrongShape"),
        ({"more": Tensor("U8", (1,), b"x")}, "more", "MissingTensor"),
    ],
)
def test_another_original(
    compressed: Path, tmp_path: Path, change: dict[str, Tensor], tensor: str, error: str
) -> None:
    other = write_model(tmp_path / "other", [CONTENT | change])
    result = verify(compressed, against=other)
    assert not result.ok
    assert (tensor, error) in {(f.tensor, f.error) for f in result.failures}
    assert {f.tensor for f in result.failures} == {tensor}
    assert all(repr(tensor) in f.message for f in result.failures)


def test_an_original_that_lacks_a_tensor(compressed: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", [{"w": CONTENT["w"]}])
    result = verify(compressed, against=other)
    assert [(f.tensor, f.error) for f in result.failures] == [("b", "ExtraTensor")]


def test_one_bad_tensor_does_not_hide_another(tmp_path: Path) -> None:
    from crafting import edit_tensor

    names = [f"w{i}" for i in range(4)]
    plain = write_model(tmp_path / "m", [{n: gaussian((64, 64), seed=i) for i, n in enumerate(names)}])
    made = compress(plain, tmp_path / "c").path
    for name in ("w1", "w3"):
        edit_tensor(made / "model.safetensors", name + "_tiles", lambda t: t.__setitem__(5, t[5] ^ 1))
    result = verify(made)
    assert [f.tensor for f in result.failures] == ["w1", "w3"]
    assert result.tensors == 4
