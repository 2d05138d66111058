"""The quantization config: few options, none of them saved."""

from __future__ import annotations

import pytest
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from tersor.format.errors import UnknownVersion, UsageError
from tersor.integrations.transformers import TersorConfig


def test_what_is_saved() -> None:
    config = TersorConfig(exact=False, layout="fast")
    assert (config.exact, config.layout) == (False, "fast")
    assert config.to_dict() == {"quant_method": "tersor", "format_version": 1}


def test_what_others_record_is_kept() -> None:
    document = {"quant_method": "tersor", "format_version": 1, "made_by": {"tersor": "9.9"}}
    config = AutoQuantizationConfig.from_dict(document)
    assert isinstance(config, TersorConfig)
    assert config.to_dict() == document


def test_refusals() -> None:
    with pytest.raises(UnknownVersion, match="newer"):
        TersorConfig(format_version=2)
    with pytest.raises(UsageError, match="auto, compact, fast"):
        TersorConfig(layout="dense")


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_choice_for_a_checkpoint_that_has_a_config() -> None:
    """`exact` and `layout` are the user's also where the checkpoint is compressed already."""
    document = {"quant_method": "tersor", "format_version": 1, "made_by": {"tersor": "9.9"}}
    wanted = TersorConfig(exact=True, layout="compact")
    merged = AutoHfQuantizer.merge_quantization_configs(document, wanted)
    assert (merged.exact, merged.layout) == (True, "compact")
    assert merged.to_dict() == document
