"""Every rule of FORMAT.md, broken: the error has the rule's name, and says where."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from malicious import DAMAGES, Damage, write_compressed
from tersor.format import errors
from tersor.format.checkpoint import open_checkpoint
from tersor.format.validate import check_compressed
from tersor.pipeline.decompress import decompress
from tersor.pipeline.inspect import inspect_model
from tersor.pipeline.plan import plan
from tersor.pipeline.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compressed(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def broken(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def test_the_sound_one_is_sound(sound: Path) -> None:
    assert verify(sound, against=sound.with_name("model-original")).ok


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.name)
def test_each_damage_is_named(damage: Damage, broken: Path, tmp_path: Path) -> None:
    damage.do(broken)
    if damage.in_data:
        found = [(f.error, f.message) for f in verify(broken).failures]
    else:
        with pytest.raises(errors.TersorError) as raised:
            check_compressed(open_checkpoint(broken))
        found = [(type(raised.value).__name__, str(raised.value))]
    assert [name for name, _ in found] == [damage.error]
    for word in damage.mentions:
        assert word in found[0][1]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.name)
def test_nothing_is_made_of_it(damage: Damage, broken: Path, tmp_path: Path) -> None:
    """No job returns anything for a broken model, except that headers alone cannot show broken data."""
    damage.do(broken)
    if damage.error != "NotCanonical":  # padding does not keep the values from being right
        with pytest.raises(errors.TersorError) as raised:
            decompress(broken, tmp_path / "out")
        assert type(raised.value).__name__ == damage.error
        assert raised.value.exit_status in (3, 4)
    assert not (tmp_path / "out" / "x").exists()
    if not damage.in_data:
        assert sorted(f.name for f in tmp_path.iterdir()) == ["model"]
        with pytest.raises(errors.TersorError):
            inspect_model(broken)
        if damage.error != "NotTersor":
            with pytest.raises(errors.TersorError):
                plan(broken)


def names(text: str) -> set[str]:
    """The [Names] of rules in a part of FORMAT.md."""
    return set(re.findall(r"\[([A-Z][A-Za-z]+)\]", text)) - {"Name"}


def test_every_rule_is_broken_here() -> None:
    """The [Names] of FORMAT.md, those of quantised codecs (section 6) apart."""
    text = (Path(__file__).parents[2] / "FORMAT.md").read_text()
    lossless, _, quantised = text.partition("\n## 6")
    broken = {damage.error for damage in DAMAGES}
    assert names(lossless) - names(quantised) <= broken <= names(lossless)
    assert len(broken) >= 19
    for name in names(text):
        assert issubclass(getattr(errors, name), errors.FormatError | errors.VerificationError)
