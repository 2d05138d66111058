"""Whole models, block by block: architectures found by structure, sharing, resuming, failing well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.codec.quantized.matrix import Quantized
from tersor.format.errors import UsageError
from tersor.quantize import spqr
from tersor.quantize.blocks import find_stacks, find_targets
from tersor.quantize.capture import capture
from tersor.quantize.lazy import open_lazily
from tersor.quantize.method import dequantize
from tersor.quantize.observe import Observer
from tersor.quantize.settings import Settings, gptq, preset, rtn
from tersor.quantize.store import Store
from tersor.quantize.stream import Job, quantize_model

transformers = pytest.importorskip("transformers")

VOCABULARY = 64
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama() -> Any:
    config = transformers.LlamaConfig(**SMALL, intermediate_size=128)
    return transformers.LlamaForCausalLM(config)


def qwen3_moe() -> Any:
    config = transformers.Qwen3MoeConfig(
        **SMALL,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=8,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_neox() -> Any:
    config = transformers.GPTNeoXConfig(**SMALL, intermediate_size=128, use_parallel_residual=True)
    return transformers.GPTNeoXForCausalLM(config)


def falcon() -> Any:
    config = transformers.FalconConfig(**SMALL, parallel_attn=True, new_decoder_architecture=False)
    return transformers.FalconForCausalLM(config)


def gemma3() -> Any:
    config = transformers.Gemma3TextConfig(
        **SMALL, intermediate_size=128, num_key_value_heads=2, head_dim=16, sliding_window=8
    )
    config.layer_types = ["sliding_attention", "full_attention"]
    return transformers.Gemma3ForCausalLM(config)


def opt() -> Any:
    config = transformers.OPTConfig(**SMALL, ffn_dim=128, max_position_embeddings=64, word_embed_proj_dim=64)
    return transformers.OPTForCausalLM(config)


ARCHITECTURES = [llama, qwen3_moe, gpt_neox, falcon, gemma3, opt]


def build(make: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make().eval()


def tokens(count: int = 4, length: int = 24) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def everywhere(settings: Settings) -> Callable[[str], Settings]:
    return lambda name: settings


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_every_architecture_is_quantised_block_by_block(make: Callable[[], Any]) -> None:
    model, ids = build(make), tokens()
    before = logits(model, ids)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reports = quantize_model(model, ids, Job(everywhere(preset("4-bit", bits=8))))
    assert 0 < (logits(model, ids) - before).abs().max() < 0.2 * before.abs().max()
    named = {report.name for report in reports}
    assert len(named) == len(reports) >= 8
    assert all(report.error is not None and report.error < 1e-3 for report in reports)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == {name if name in state else name.rpartition(".")[0] for name in named}


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_replayed_blocks_give_what_the_model_gives(make: Callable[[], Any]) -> None:
    """With nothing chosen, the hidden states that stream past are those inside the whole model."""
    model, ids = build(make), tokens()
    blocks = find_stacks(model)[0].blocks
    inputs: list[Tensor] = []
    last = blocks[-1].register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    for sequence in ids:
        logits(model, sequence[None])
    last.remove()
    calls = capture(lambda x: model(input_ids=x, use_cache=False), blocks, ids)
    for i, hidden in enumerate(calls.hidden):
        args, kwargs = calls.rest[i][0]
        with torch.no_grad():
            output = blocks[0](hidden, *args, **kwargs)
        torch.testing.assert_close(output if isinstance(output, Tensor) else output[0], inputs[i])
    shared = [a[0] is b[0] for a, b in zip(calls.rest[0], calls.rest[1], strict=True)]
    assert calls.rest[2] == calls.rest[1] or all(shared)  # kept once, not per sequence


def test_each_block_keeps_its_own_arguments() -> None:
    model = build(gemma3)
    calls = capture(lambda x: model(input_ids=x, use_cache=False), find_stacks(model)[0].blocks, tokens())
    sliding, full = (kwargs["attention_mask"] for _, kwargs in calls.rest[0])
    assert sliding is not None
    assert full is None or not torch.equal(sliding, full)


def test_linears_with_one_input_share_a_hessian() -> None:
    model = build(llama)
    block = find_stacks(model)[0].blocks[0]
    observer = Observer(find_targets(block))
    with observer:
        logits(model, tokens())
    found = [sorted(name.split(".")[-2] for name in group) for group in observer.groups()]
    assert found == [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    q, k = (observer.hessian(f"self_attn.{x}_proj.weight") for x in "qk")
    assert q is k
    assert q.count == tokens().numel()


def test_the_hessian_is_that_of_the_inputs() -> None:
    layer = nn.Linear(64, 64)
    observer, x = Observer(find_targets(nn.Sequential(layer))), torch.randn(3, 5, 64)
    with observer, torch.no_grad():
        layer(x[:2])
        observer.next_sequence()
        layer(x[2:])
    flat = x.reshape(-1, 64)
    torch.testing.assert_close(observer.hessian("0.weight").mean(), 2 / 15 * flat.T @ flat)


def test_experts_are_quantised_however_few_tokens_reach_them(caplog: pytest.LogCaptureFixture) -> None:
    model = build(qwen3_moe)
    experts = model.model.layers[0].mlp.experts
    before = experts.gate_up_proj.detach().clone()
    reports = quantize_model(model, tokens(1, 3), Job(everywhere(preset("4-bit"))))
    by_name = {report.name: report for report in reports}
    slices = [by_name[f"model.layers.0.mlp.experts.gate_up_proj.{i}"] for i in range(8)]
    assert sum(report.tokens for report in slices) == 3 * 2
    assert any(report.tokens == 0 for report in slices)
    assert "no calibration token reached it" in caplog.text
    error = (experts.gate_up_proj - before).square().mean() / before.square().mean()
    assert 0 < error < 0.02  # no expert was lost


def test_an_expert_with_few_tokens_learns_from_the_others() -> None:
    experts, inputs, generator = nn.Parameter(torch.randn(4, 48, 96)), 96, torch.Generator().manual_seed(0)
    module = nn.Module()
    module.experts = experts
    mix = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(4, 400, inputs, generator=generator) @ mix
    targets = find_targets(module)
    observer = Observer(targets)
    with observer, torch.no_grad():
        for i, count in enumerate((400, 400, 12, 0)):
            if count:
                nn.functional.linear(x[i, :count], experts[i])
    truth = 2 * mix.T @ mix

    def loss(i: int, h: Tensor) -> float:
        e = dequantize(spqr.quantize(experts.detach()[i], h, preset("3-bit"))) - experts.detach()[i]
        return float(((e @ truth) * e).sum())

    pooled = [observer.mean(target) for target in targets]
    own = [observer.hessian(target.name).mean() for target in targets]
    assert own[3] is None and own[2] is not None
    assert all(h is not None for h in pooled)
    assert loss(2, pooled[2]) < 0.8 * loss(2, own[2])  # type: ignore[arg-type]
    assert loss(3, pooled[3]) < 0.8 * loss(3, torch.eye(inputs))  # type: ignore[arg-type]
    torch.testing.assert_close(pooled[0], own[0], rtol=0.5, atol=0.2 * float(truth.diagonal().mean()))


def test_an_encoder_and_a_decoder_are_two_stacks() -> None:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    sound = torch.randn(3, 8, 32)
    ids = torch.ones(1, 4, dtype=torch.int64)

    def run(x: Tensor) -> object:
        return model(input_features=x, decoder_input_ids=ids, use_cache=False)

    reports = quantize_model(model, sound, Job(everywhere(preset("4-bit", bits=6))), run)
    names = [report.name for report in reports]
    assert len(names) == 2 * 6 + 2 * 10
    cross = [r for r in reports if "encoder_attn.k_proj" in r.name]
    assert all(r.tokens == 3 * 16 and r.error is not None and r.error < 1e-2 for r in cross)


def test_true_sequential_sees_the_error_of_earlier_layers() -> None:
    ids, seen = tokens(), []
    for sequential in (False, True):
        model = build(llama)
        job = Job(everywhere(gptq(2)), true_sequential=sequential)
        reports = {r.name: r for r in quantize_model(model, ids, job)}
        assert len(reports) == 14
        seen.append(reports)
    plain, sequential_ones = seen
    first, last = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert plain[first].error == sequential_ones[first].error
    assert plain[last].error != sequential_ones[last].error


def test_a_later_block_is_calibrated_on_quantised_ones() -> None:
    ids, name = tokens(), "model.layers.1.self_attn.q_proj.weight"
    errors = []
    for bits in (2, 8):
        model = build(llama)

        def choose(layer: str, bits: int = bits) -> Settings:
            return gptq(4) if layer == name else rtn(bits)

        errors.append(next(r.error for r in quantize_model(model, ids, Job(choose)) if r.name == name))
    assert errors[0] != errors[1]


def test_what_is_not_chosen_stays() -> None:
    model = build(llama)
    down = model.model.layers[1].mlp.down_proj.weight.detach().clone()
    job = Job(lambda name: None if "down_proj" in name else rtn(3))
    reports = quantize_model(model, tokens(), job)
    assert len(reports) == 12
    assert torch.equal(down, model.model.layers[1].mlp.down_proj.weight)


@pytest.mark.parametrize("make", [llama, qwen3_moe])
def test_a_killed_job_goes_on_and_ends_the_same(make: Callable[[], Any], tmp_path: Path) -> None:
    ids, settings = tokens(), preset("3-bit")
    whole = build(make)
    quantize_model(whole, ids, Job(everywhere(settings), store=Store(tmp_path / "whole", "job")))

    class Killed(Exception):
        pass

    count = 0

    def stop(report: object) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise Killed

    store = Store(tmp_path / "killed", "job")
    with pytest.raises(Killed):
        quantize_model(build(make), ids, Job(everywhere(settings), store=store, progress=stop))
    again = build(make)
    reports = quantize_model(again, ids, Job(everywhere(settings), store=Store(tmp_path / "killed", "job")))
    assert sum(report.error is None for report in reports) == 10
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("make", [llama, falcon, opt])
def test_a_model_read_block_by_block_gives_the_same(make: Callable[[], Any], tmp_path: Path) -> None:
    model = build(make)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    whole = Store(tmp_path / "whole", "job")
    reports = quantize_model(model, tokens(), Job(everywhere(preset("4-bit")), store=whole))
    light, lazy = open_lazily(tmp_path / "model")
    assert any(parameter.device.type == "meta" for parameter in light.parameters())
    store = Store(tmp_path / "lazy", "job")
    quantize_model(light, tokens(), Job(everywhere(preset("4-bit")), store=store, lazy=lazy))
    for report in reports:
        a, b = whole.get(report.name), store.get(report.name)
        assert a is not None and b is not None
        assert torch.equal(dequantize(a), dequantize(b))
    for block in find_stacks(light)[0].blocks:
        assert {parameter.device.type for parameter in block.parameters()} == {"meta"}


def test_names_that_differ_are_an_error(tmp_path: Path) -> None:
    build(qwen3_moe).save_pretrained(tmp_path)
    model, lazy = open_lazily(tmp_path)
    with pytest.raises(UsageError, match=r"experts.*load the model whole"):
        quantize_model(model, tokens(), Job(everywhere(rtn(4)), lazy=lazy))


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path, {"bits": 3})
    weight = torch.randn(40, 70).bfloat16()
    for settings in (rtn(3), preset("3-bit"), preset("4-bit", tau=0.01)):
        q = spqr.quantize(weight, torch.eye(70), settings)
        store.put("a.weight", q)
        found = store.get("a.weight")
        assert isinstance(found, Quantized)
        assert (found.width, found.group, found.stat_bits) == (settings.bits, q.group, settings.stat_bits)
        assert torch.equal(dequantize(found), dequantize(q))
        np.testing.assert_array_equal(found.outlier_index, q.outlier_index)
    assert store.get("b.weight") is None
    with pytest.raises(UsageError, match="another job"):
        Store(tmp_path, {"bits": 4})


def test_the_served_type_is_that_of_the_checkpoint() -> None:
    model = build(llama).bfloat16().float()
    quantize_model(model, tokens(), Job(everywhere(preset("4-bit")), served=torch.bfloat16))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, weight.bfloat16().float())


def test_a_weight_that_is_no_number_stops_the_job_and_is_named() -> None:
    model = build(llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        quantize_model(model, tokens(), Job(everywhere(rtn(4))))


def test_activations_that_overflow_stop_the_job_and_are_named() -> None:
    model = build(llama)
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = float("inf")
    with pytest.raises(UsageError, match=r"layers\.0.*calibration"):
        quantize_model(model, tokens(), Job(everywhere(preset("4-bit"))))


def test_blocks_that_no_input_reaches_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = build(llama)
    model.tower = nn.ModuleList([nn.Sequential(nn.Linear(64, 64)) for _ in range(2)])
    before = model.tower[0][0].weight.detach().clone()
    reports = quantize_model(model, tokens(), Job(everywhere(rtn(3))))
    assert len(reports) == 14
    assert torch.equal(model.tower[0][0].weight, before)
    assert "tower: no calibration input reaches" in caplog.text


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="no list of blocks"):
        find_stacks(nn.Sequential(nn.Linear(64, 64)))
