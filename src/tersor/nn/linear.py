"""A linear layer's weight in the product: decoded ahead of it or for it and dropped after it, or never decoded."""

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
        y = ahead.product(self, input)
        return self.alone(input) if y is None else y

    def alone(self, input: Tensor) -> Tensor:
        """The same, by the layer's own arrays."""
        source = self.compressed["weight"]
        if isinstance(source, Fused):
            return source.linear(self, input, self.bias)
        return F.linear(input, self.decode("weight"), self.bias)
