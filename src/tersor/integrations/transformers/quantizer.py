"""Transformers' quantizer interface: each hook says where it leads."""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer


class TersorQuantizer(HfQuantizer):
    """Loads, saves and restores models whose weights are compressed.

    Modules with torch code are imported when a model is loaded: importing Transformers stays
    as fast as it was.
    """

    requires_calibration = False

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.dtype: torch.dtype | None = None  # what from_pretrained was asked for
        self.prepared: Any = None  # surgery.Prepared, from the moment the model's modules are replaced

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Unchanged, but noted: Transformers does not pass it on to the hook below."""
        self.dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        from tersor.integrations.transformers import encoding, loading, parallel

        parallel.refuse_plans(model)
        config = self.quantization_config.to_dict()
        prepare = loading.prepare_compressed if self.pre_quantized else encoding.prepare_encoding
        self.prepared = prepare(model, checkpoint_files, config, self.dtype)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """Less the converters whose work is ours, more renamings (5.17 passes no model)."""
        from tersor.integrations.transformers.renaming import with_parts

        ours = [*self.prepared.replaced, *(conversion.converter for conversion in self.prepared.conversions)]
        replaced = {(tuple(c.source_patterns), c.scope_prefix) for c in ours}
        kept = [c for c in weight_conversions if (tuple(c.source_patterns), c.scope_prefix) not in replaced]
        return with_parts(kept)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether the tensor of this parameter is to be encoded when it is loaded."""
        return param_name in self.prepared.to_encode

    def get_quantize_ops(self) -> Any:
        """The encoder."""
        from tersor.integrations.transformers.encoding import Encode

        return Encode(self.prepared.dtypes)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from tersor.integrations.transformers.converting import run
        from tersor.integrations.transformers.parallel import refuse_distributed
        from tersor.integrations.transformers.surgery import cast_plain, check_stored, refuse_missing
        from tersor.nn import lay_out

        refuse_distributed(model)
        refuse_missing(model)
        run(model, self.prepared.conversions, self.prepared.dtypes)
        cast_plain(model, self.prepared.dtypes)
        config: Any = self.quantization_config  # a TersorConfig
        check_stored(model)
        lay_out(model, config.layout, config.exact)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        from tersor.integrations.transformers.restoring import restore_model

        return restore_model(model, self.prepared.replaced, dtype)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What save_pretrained writes."""
        from tersor.integrations.transformers.saving import state_dict_and_metadata

        return state_dict_and_metadata(model)

    def is_serializable(self) -> bool:
        """Compressed checkpoints are saved as such."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Not yet: the stored form cannot be updated."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Not unasked: Inductor's fusion changes bf16 results, and we promise them unchanged.

        `torch.compile(model)` works for whoever asks for it.
        """
        return False
