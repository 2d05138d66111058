"""An embedding that decodes the rows it is asked for, not the vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from tersor.format.layout import matrix_shape
from tersor.nn.fused import Fused
from tersor.nn.module import CompressedModule, CompressedParameter
from tersor.nn.stored import Stored


class CompressedEmbedding(CompressedModule, nn.Embedding):
    """`nn.Embedding` with a compressed table.

    Rows shorter than 64 values are merged by the format's matrix (FORMAT.md section 3); such
    a table, and one that renormalises itself in place (`max_norm`), is decoded whole.
    """

    plain_class = nn.Embedding
    weight = CompressedParameter("weight")

    def forward(self, input: Tensor) -> Tensor:
        """input: integers of any shape (...) -> (..., embedding_dim)."""
        table = self.compressed["weight"]
        if (
            not isinstance(table, Stored | Fused)
            or self.max_norm is not None
            or matrix_shape(table.shape) != table.shape
        ):
            return super().forward(input)
        return table.rows(self, input.reshape(-1).long()).reshape(*input.shape, self.embedding_dim)
