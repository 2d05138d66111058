"""`quantization_config`: what a checkpoint's config.json records, and what a user may choose."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers.utils.quantization_config import QuantizationConfigMixin

from tersor.format.constants import FORMAT_VERSION, QUANT_METHOD
from tersor.format.errors import UnknownVersion, UsageError

Layout = Literal["auto", "compact", "fast"]


class TersorConfig(QuantizationConfigMixin):
    """Load a checkpoint of tersor, or compress any bf16, fp16, fp32 or fp8 checkpoint while it is loaded.

    exact:  compute with the decoded weights by the operations of the plain model, so that
            results are the plain model's bit for bit. False (the default) allows fused products
            on GPUs for few tokens: faster than the plain model, their sums ordered otherwise;
            weights are the same bits in either case.
    layout: how weights lie in GPU memory: "compact" as on disk, "fast" for fused products, "auto"
            takes "fast" where it fits. `tersor.lay_out(model, ...)` changes both later, as for a
            model that was moved to the GPU after loading.

    On a CPU both change nothing. They are choices for one process, not properties of a
    checkpoint, and are not saved. What else a checkpoint's config.json records under
    `quantization_config` is kept in `recorded` and saved again.
    """

    def __init__(
        self,
        exact: bool = False,
        layout: Layout = "auto",
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **recorded: Any,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise UnknownVersion(
                f"quantization_config: format version {format_version!r}, and this tersor reads version "
                f"{FORMAT_VERSION}; install a newer tersor"
            )
        if layout not in get_args(Layout):
            raise UsageError(f"TersorConfig: layout {layout!r} is not one of {', '.join(get_args(Layout))}")
        self.quant_method = quant_method  # type: ignore[assignment]  # Transformers' enum is of its own methods
        self.format_version = format_version
        self.exact = exact
        self.layout = layout
        self.recorded = recorded

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a user may choose for a checkpoint that has a config of its own."""
        return {"exact": self.exact, "layout": self.layout}

    def to_dict(self) -> dict[str, Any]:
        """What config.json records."""
        return {"quant_method": self.quant_method, "format_version": self.format_version, **self.recorded}
