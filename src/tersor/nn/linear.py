"""A linear layer whose weight is decoded for each product and dropped after it, or never decoded at all."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tersor.nn import ahead
from tersor.nn.fused import Fused
from tersor.nn.module import CompressedModule, CompressedParameter


class CompressedLinear(CompressedModule, nn.Linear):
    """`nn.Linear` with a compressed weight; the same product of the same values."""

    plain_class = nn.Linear
    weight = CompressedParameter("weight")

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., in_features) -> (..., out_features)."""
        source = self.compressed["weight"]
        if isinstance(source, Fused):
            return source.linear(self, input, self.bias)
        return F.linear(input, ahead.decoded(self), self.bias)
