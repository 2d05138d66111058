"""Torch modules whose weights stay compressed; they know nothing of files or frameworks.

`compress(module, name, ...)` turns any module into one whose parameter `name` is stored
compressed and decoded when it is used; `restore(module)` undoes it. `CompressedLinear` and
`CompressedEmbedding` are what that makes of modules that know a better way than to decode
everything. `stack_experts` does the same for parameters that are many tensors on disk, and
makes `CompressedExperts`. `lay_out` brings a model on a GPU into the layout it computes in:

    forms, form_*    layouts that products read directly, behind one interface
    fused, product   a weight in one of them, and its products' gradients
    joint, siblings  layers with the same input as one matrix and one product
    sharing          weights that several modules hold
    ahead, ahead_pass, ring    weights decoded while the products before theirs run
    scope            the modules in whose forward layers work together
"""

from tersor.nn.deferred import DeferredWeight, materialize
from tersor.nn.embedding import CompressedEmbedding
from tersor.nn.experts import CompressedExperts, ExpertStack, StoredWeight, remove_leaf
from tersor.nn.layouts import lay_out
from tersor.nn.linear import CompressedLinear
from tersor.nn.module import CompressedModule
from tersor.nn.stored import Stored
from tersor.nn.surgery import add_leaf, compress, is_compressed, restore, stack_experts

__all__ = [
    "CompressedEmbedding",
    "CompressedExperts",
    "CompressedLinear",
    "CompressedModule",
    "DeferredWeight",
    "ExpertStack",
    "Stored",
    "StoredWeight",
    "add_leaf",
    "compress",
    "is_compressed",
    "lay_out",
    "materialize",
    "remove_leaf",
    "restore",
    "stack_experts",
]
