"""Names on disk to names in the model, by structure and not by architecture."""

from __future__ import annotations

import pytest
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
)

from tersor.format.layout import SUFFIXES
from tersor.integrations.transformers.homes import concatenated, projection
from tersor.integrations.transformers.renaming import with_parts

GATE_UP = ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]
ESCAPED = [r"\.experts.*.w1.weight", r"\.experts.*.w3.weight"]


@pytest.mark.parametrize(
    ("sources", "target", "operations", "dim"),
    [
        (GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)], 0),
        (GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=2)], 1),
        (ESCAPED, ".experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)], 0),
        (["mlp.experts.*.down_proj.weight"], "mlp.experts.down_proj", [MergeModulelist(dim=0)], 0),
        # what a stack of experts is not
        (GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=1), Concatenate(dim=1)], None),
        (GATE_UP, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=0)], None),
        (
            ["mlp.experts.*.down_proj.weight"],
            "mlp.experts.down_proj",
            [MergeModulelist(dim=0), Transpose(1, 2)],
            None,
        ),
        (["mlp.experts.*.down_proj.weight"], "mlp.other.down_proj", [MergeModulelist(dim=0)], None),
        (["mlp.experts.*.weight"], "mlp.experts.down_proj", [MergeModulelist(dim=0)], None),
    ],
)
def test_stacks_of_experts(
    sources: list[str], target: str, operations: list[object], dim: int | None
) -> None:
    assert concatenated(WeightConverter(list(sources), target, operations=operations)) == dim


def test_a_split_is_no_stack() -> None:
    converter = WeightConverter(
        "attn.qkv.weight", ["attn.q.weight", "attn.k.weight"], operations=[Chunk(dim=0)]
    )
    assert concatenated(converter) is None


def test_projection() -> None:
    assert projection(ESCAPED[1]) == "w3.weight"


def renamed(name: str, transforms: list[WeightRenaming]) -> str:
    for transform in transforms:
        name, _ = transform.rename_source_key(name)
    return name


WHOLE = "moe.input_linear.weight", "moe.experts.gate_up_proj"


@pytest.mark.parametrize("suffix", ["", "_book", "_offsets", "_tiles"])
def test_a_renaming_of_a_whole_name_reaches_the_parts(suffix: str) -> None:
    transforms = with_parts([WeightRenaming(*WHOLE)])
    assert renamed(f"layers.3.{WHOLE[0]}{suffix}", transforms) == f"layers.3.{WHOLE[1]}{suffix}"
    reversed_transforms = [t.reverse_transform() for t in transforms[::-1]]
    assert renamed(f"layers.3.{WHOLE[1]}{suffix}", reversed_transforms) == f"layers.3.{WHOLE[0]}{suffix}"


def test_likes_are_added_once_and_only_where_needed() -> None:
    inside = WeightRenaming("block_sparse_moe.", "mlp.")
    once = with_parts([inside, WeightRenaming(*WHOLE)])
    assert len(once) == 2 + len(SUFFIXES)
    assert len(with_parts(once)) == len(once)


def test_likes_keep_the_scope() -> None:
    scoped = WeightRenaming(*WHOLE)
    scoped.scope_prefix, scoped.base_model_prefix = "text", "model"
    transforms = with_parts([scoped])
    assert renamed(f"text.{WHOLE[0]}_tiles", transforms) == f"text.{WHOLE[1]}_tiles"
    assert renamed(f"vision.{WHOLE[0]}_tiles", transforms) == f"vision.{WHOLE[0]}_tiles"
