"""compress with a goal: which options go together, and what is shown of a job, in words and as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tersor.cli.amounts import parse_bytes, parse_share, parse_tokens
from tersor.cli.commands.near_lossless import Options, request
from tersor.format.errors import UsageError
from tersor.quantize.settings import Settings

Command = Any


def options(**given: Any) -> Options:
    return Options(**{**dict.fromkeys(Options.__dataclass_fields__), **given})


def test_without_options_it_is_lossless() -> None:
    assert request(options()) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calib": Path("a")}, r"--calib belongs to near-lossless .* add --bits"),
        ({"tau": 0.1}, "--tau belongs to"),
        ({"seed": 0}, "--seed belongs to"),
        ({"bits": 4.0}, "--bits needs --calib TEXT"),
        ({"size": "12GB"}, "--size needs --calib TEXT"),
        ({"bits": 4.0, "max_kl": 0.1, "calib": Path("a")}, "--bits and --max-kl are two goals"),
        ({"max_kl": 0.1, "size": "1GB", "calib": Path("a")}, "--max-kl and --size are two goals"),
        ({"max_kl": 0.1, "group": 16, "calib": Path("a")}, "--group fixes the method"),
        ({"bits": 4.5, "tau": 0.1, "calib": Path("a")}, r"--tau .* whole number of --bits"),
        ({"max_kl": 0.1, "method": "gptq", "calib": Path("a")}, "leave --method out"),
        ({"bits": 4.5, "method": "rtn", "calib": Path("a")}, "whole number of bits"),
        ({"bits": 9.0, "calib": Path("a")}, "2 to 8"),
        ({"bits": 4.0, "method": "gptq", "stat_bits": 3, "calib": Path("a")}, "--stat-bits does not belong"),
        (
            {"bits": 4.0, "method": "rtn", "act_order": "none", "calib": Path("a")},
            "--act-order does not belong",
        ),
        ({"max_kl": 0.1, "act_order": "none", "calib": Path("a")}, "--act-order fixes the method"),
        ({"bits": 4.0, "stat_bits": 9, "calib": Path("a")}, "stat_bits must be 0"),
        ({"bits": 4.0, "method": "integers", "group": 8, "calib": Path("a")}, "--group does not belong"),
        ({"max_ppl_loss": "much", "calib": Path("a")}, "--max-ppl-loss much: give a share"),
        ({"size": "large", "calib": Path("a")}, "--size large: give a size"),
        ({"max_kl": -1.0, "calib": Path("a")}, "positive"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request(options(**given))


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"bits": 4.0}, "method", 4),
        ({"bits": 3.5, "method": "integers"}, "method", 3.5),
        ({"bits": 4.5}, "bits", 4.5),
        ({"max_kl": 0.01}, "kl", 0.01),
        ({"max_ppl_loss": "1%"}, "ppl", 0.01),
        ({"max_ppl_loss": "0.02"}, "ppl", 0.02),
        ({"size": "12GB"}, "size", 12e9),
    ],
)
def test_the_goal_that_is_meant(given: dict[str, Any], kind: str, value: float) -> None:
    wanted = request(options(calib=Path("a"), **given))
    assert wanted is not None
    goal, calibration = wanted
    assert (goal.kind, goal.value) == (kind, pytest.approx(value))
    assert (calibration.sequences, calibration.length, calibration.seed) == (128, None, 0)


def test_settings_reach_the_method() -> None:
    given = {"bits": 3.0, "group": 32, "rows": 64, "tau": 0.5, "stat_bits": 4, "act_order": "columns"}
    wanted = request(options(calib=Path("a"), **given))
    assert wanted is not None
    (method,) = wanted[0].methods
    assert isinstance(method, Settings)
    assert {name: getattr(method, name) for name in given} == given


def test_amounts() -> None:
    assert [parse_bytes(t, "--size") for t in ("24", "24GB", "1.5 GiB", "300mb")] == [
        24 * 10**9, 24 * 10**9, 3 * 2**29, 3 * 10**8,
    ]  # fmt: skip
    assert [parse_tokens(t, "--context") for t in ("8192", "32k")] == [8192, 32768]
    assert [parse_share(t, "--x") for t in ("1%", "0.5 %", "0.01", ".2")] == [0.01, 0.005, 0.01, 0.2]
    for parse in (parse_bytes, parse_tokens, parse_share):
        with pytest.raises(UsageError, match="--option minus"):
            parse("minus", "--option")


def test_the_whole_story(tersor: Command, demo_model: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    """Compress, verify, inspect and decompress the demo model, by commands alone."""
    pytest.importorskip("transformers")
    out = tmp_path / "out"
    text = ("--calib", texts[0], "--sequences", 4, "--length", 48, "--heldout", texts[1])
    ran = tersor("compress", demo_model, out, "--bits", 3, "--method", "rtn", "--group", 32, *text)
    assert ran.status == 0, ran.err
    assert re.search(r"goal +rtn 3 bits, groups of 32", ran.out)
    assert re.search(r"28 of 38 tensors, the rest without loss", ran.out)
    assert re.search(r"4\.000 bits = 3\.000 codes \+ 1\.000 statistics \+ 0\.000 outliers", ran.out)
    assert re.search(
        r"layers +output errors -\d+\.\d dB to -\d+\.\d dB, the largest in model\.layers\.", ran.out
    )
    assert re.search(r"measured +on \d+ held-out tokens: KL \d\.\d+ ± 0\.\d+ nats", ran.out)
    assert len(re.findall(r"output error -\d+\.\d dB", ran.err)) == 28
    assert "28 of 28" in ran.err
    checked = tersor("verify", out, "--against", demo_model)
    assert checked.status == 0
    assert "the 10 that are not quantised bit for bit" in checked.out
    shown = tersor("inspect", out)
    assert "28 tensors quantised" in shown.out
    assert "spqr" in shown.out
    one = tersor("inspect", out, "model.layers.0.mlp.up_proj.weight")
    assert "entropy of the codes" in one.out
    back = tersor("decompress", out, tmp_path / "back")
    assert "28 tensors were quantised" in back.out
    planned = tersor("plan", out, "--json").json
    assert [size["codec"] for size in planned["sizes"]] == ["as it is", "near-lossless"]


def test_a_result_as_json(
    tersor: Command, demo_model: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    text = ("--calib", texts[0], "--sequences", 4, "--length", 48)
    ran = tersor("compress", demo_model, tmp_path / "out", "--bits", 4, "--method", "gptq", *text, "--json")
    assert ran.status == 0
    assert ran.json["bits"]["per_weight"] < 5
    assert ran.json["quantized_tensors"] == 28
    assert ran.json["held_out"] is None
    layers = {layer["name"]: layer for layer in ran.json["layers"]}
    assert len(layers) == 28
    assert layers["model.layers.3.mlp.down_proj.weight"]["shape"] == [128, 384]
    assert all(0 < layer["error"] < 0.05 and layer["outliers"] == 0 for layer in layers.values())
    assert not ran.err
    again = tersor("compress", demo_model, tmp_path / "out", "--bits", 4, *text, "--json")
    assert again.status == 2
    assert again.json["error"]["type"] == "OutputExists"


def test_text_that_is_none_ends_with_status_2(tersor: Command, demo_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ran = tersor(
        "compress", demo_model, tmp_path / "out", "--bits", 4, "--calib", demo_model / "model.safetensors"
    )
    assert ran.status == 2
    assert "is not text" in ran.err
    ran = tersor("compress", demo_model, tmp_path / "out", "--bits", 4, "--calib", demo_model / "config.json")
    assert ran.status == 2
    assert "give more text" in ran.err
