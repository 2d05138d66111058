"""Transformers 5: tersor as a quantization method, by the two decorators Transformers has for that.

Importing this module registers it. Nobody has to: see `tersor.integrations.autoload`.

    AutoModelForCausalLM.from_pretrained(DIR)                                        a compressed checkpoint
    AutoModelForCausalLM.from_pretrained(DIR, quantization_config=TersorConfig())    compress while loading

    config.py      what config.json says, and the user's options
    quantizer.py   Transformers' interface, thin
    homes.py       which parameter of the model each tensor of the checkpoint is
    renaming.py    ... and each part of a compressed one
    surgery.py     stacks of experts, and what is remembered of a preparation
    loading.py     giving the model's modules their compressed form, before the data comes
    converting.py  tensors that must be decoded while loading
    encoding.py    compressing tensors as they are loaded
    tying.py       tied weights share one compressed tensor
    saving.py      the state dict and manifest of a checkpoint that keeps FORMAT.md's rules
    restoring.py   dequantize()
    parallel.py    what is refused
    attention.py   attention of a decode step, for the decode loop

Kept working for Transformers 5.17 up to the newest; where they differ, a comment says so.
"""

from transformers.quantizers import auto
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from tersor.format.constants import QUANT_METHOD
from tersor.integrations.transformers.config import TersorConfig
from tersor.integrations.transformers.quantizer import TersorQuantizer

__all__ = ["TersorConfig", "TersorQuantizer"]

if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:  # a reload of this module is no error
    register_quantization_config(QUANT_METHOD)(TersorConfig)
    register_quantizer(QUANT_METHOD)(TersorQuantizer)
    # Lets a config given to from_pretrained set `exact` and `layout` for a checkpoint that has one of
    # its own. Transformers has no decorator for this; without the name it would ignore the user's.
    known: tuple[type, ...] = auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*known, TersorConfig)  # type: ignore[assignment]
