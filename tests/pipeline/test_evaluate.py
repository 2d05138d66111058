"""Judging a model: every number against one worked out by hand or by brute force."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.format.errors import UsageError
from tersor.pipeline.evaluate import evaluate
from tersor.pipeline.evaluate_likelihood import encode_pair, likelihood
from tersor.pipeline.evaluate_tasks import Row, clean_hellaswag, parse_row, read_task, score_task
from tersor.pipeline.evaluate_text import divergence, join_wikitext, perplexity, read_text, windows

VOCABULARY = 257
BEGIN = 256


class Bytes:
    """A tokenizer of bytes; it adds no marks by itself."""

    bos_token_id = BEGIN
    eos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


class Bigram(nn.Module):
    """A model whose next-token logits depend on the current token only: a table that can be looked up."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = 2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        table += noise * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])

    def logprob(self, a: int, b: int) -> float:
        return float(self.table[a].detach().double().log_softmax(-1)[b])


def test_perplexity_scores_every_token_with_context() -> None:
    model, text = Bigram(), "abcdefghijk"
    ids = windows(text, Bytes(), 4)
    assert [w.shape[1] for w in ids] == [4, 4, 3]
    pairs = [(a, b) for w in ids for a, b in zip(w[0].tolist(), w[0, 1:].tolist(), strict=False)]
    assert len(pairs) == 3 + 3 + 2
    losses = [-model.logprob(a, b) for a, b in pairs]
    found = perplexity(model, ids, len(text))
    assert found.tokens == 8
    assert found.loss == pytest.approx(sum(losses) / 8, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))  # a token is a byte here
    assert found.loss_stderr > 0


def test_a_window_of_one_token_is_dropped() -> None:
    assert [w.shape[1] for w in windows("abcde", Bytes(), 4)] == [4]
    with pytest.raises(UsageError, match="1 tokens"):
        windows("a", Bytes(), 4)


def test_the_standard_error_is_that_of_repeated_texts() -> None:
    """Over many texts, the means spread as far as the standard error says."""
    model = Bigram()
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(60):
        ids = [torch.randint(0, 256, (1, 5), generator=generator) for _ in range(40)]
        found.append(perplexity(model, ids, 1))
    spread = torch.tensor([p.loss for p in found]).std()
    assert float(spread) == pytest.approx(sum(p.loss_stderr for p in found) / 60, rel=0.25)


def test_divergence_is_zero_from_itself_and_right_from_another() -> None:
    original, other, ids = Bigram(), Bigram(3, 0.5), windows("some words to read", Bytes(), 8)
    ppl, same = divergence(original, original, ids, 18)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.same_top == 1
    assert same.original_loss == pytest.approx(ppl.loss)
    ppl, far = divergence(other, original, ids, 18)
    assert ppl.loss == pytest.approx(perplexity(other, ids, 18).loss)
    expected, agree = [], []
    for window in ids:
        for token in window[0, :-1].tolist():
            p, q = (m.table[token].detach().double().log_softmax(-1) for m in (original, other))
            expected.append(float((p.exp() * (p - q)).sum()))
            agree.append(float(p.argmax() == q.argmax()))
    assert far.kl == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert far.kl_max == pytest.approx(max(expected), rel=1e-4)
    assert far.same_top == pytest.approx(sum(agree) / len(agree))
    assert 0 < far.kl_stderr < far.kl
    assert far.excess_loss == pytest.approx(ppl.loss - far.original_loss)
    assert 0 < far.excess_loss_stderr < ppl.loss_stderr


def test_wikitext_is_joined_as_its_rows_are() -> None:
    assert join_wikitext(" \n = Title = \n \n Text here . \n") == "\n\n = Title = \n\n\n\n\n Text here . \n"
    assert join_wikitext(" \n a\n") == "\n\n a\n"


def test_text_files_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text(" \n a\n")
    assert read_text(path) == " \n a\n"
    assert read_text(path, join_lines=True) == "\n\n a\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="byte 2 is not UTF-8"):
        read_text(path)
    with pytest.raises(UsageError, match=r"none\.txt"):
        read_text(tmp_path / "none.txt")


def test_the_continuation_is_what_the_context_leaves() -> None:
    assert encode_pair(Bytes(), "ab", " cd") == (list(b"ab"), list(b" cd"))
    assert encode_pair(Bytes(), "ab ", "cd") == (list(b"ab"), list(b" cd"))
    assert encode_pair(Bytes(), "", "cd") == ([BEGIN], list(b"cd"))


def test_likelihood_is_the_sum_over_the_continuation_in_any_batch() -> None:
    model = Bigram()
    pairs = [("context", " one"), ("c", " a much longer one"), ("some words", "x"), ("", "y"), ("end ", "z")]

    def by_hand(context: str, continuation: str) -> float:
        ids = list(context.encode()) or [BEGIN]
        whole = ids + list(continuation.encode())
        start = len(list(context.rstrip().encode())) or 1
        return sum(model.logprob(whole[i - 1], whole[i]) for i in range(start, len(whole)))

    expected = [by_hand(*pair) for pair in pairs]
    for batch_tokens in (1, 20, 1000):
        seen: list[tuple[int, int]] = []
        found = likelihood(
            model, Bytes(), pairs, 64, batch_tokens, step=lambda a, b, seen=seen: seen.append((a, b))
        )
        assert [x.logprob for x in found] == pytest.approx(expected, rel=1e-5)
        assert [x.tokens for x in found] == [4, 18, 1, 1, 2]
        assert seen[-1] == (5, 5)


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model = Bigram()
    long, short = likelihood(model, Bytes(), [("x" * 100 + "ab", " cd"), ("ab", " cd")], length=8)
    assert long.logprob == pytest.approx(short.logprob, rel=1e-6)
    (cut,) = likelihood(model, Bytes(), [("ab", "c" * 20)], length=8)
    assert cut.tokens == 8


def test_greedy_is_told_from_likely() -> None:
    model = Bigram()
    best = int(model.table[ord("a")].argmax())
    with torch.no_grad():
        model.table[ord("a"), ord("z")] = 50.0
    z, other = likelihood(model, Bytes(), [("a", "z"), ("a", chr(best % 128))], 8)
    assert z.greedy
    assert not other.greedy


POLE = "Pole vault: A pole. A few women"
ROWS = {
    "winogrande": (
        {"context_options": ["the cat", "the dog"], "continuation": "ran.", "gold": 1},
        Row([("the cat", " ran."), ("the dog", " ran.")], 1),
    ),
    "piqa": (
        {"query": "Question: how?\n", "choices": ["so", "thus"], "gold": 0},
        Row([("Question: how?\nAnswer:", " so"), ("Question: how?\nAnswer:", " thus")], 0),
    ),
    "arc": (
        {"query": "Question: q\nAnswer:", "choices": ["a", "b", "c"], "gold": 2},
        Row([("Question: q\nAnswer:", " a"), ("Question: q\nAnswer:", " b"), ("Question: q\nAnswer:", " c")], 2),
    ),
    "lambada": ({"context": "once upon a", "continuation": "time"}, Row([("once upon a", " time")], 0)),
    "hellaswag": (
        {
            "activity_label": "Pole vault",
            "ctx_a": "A pole.",
            "ctx_b": "a few women",
            "endings": ["jump [step] over.", "  fall [title] Down"],
            "label": 1,
        },
        Row([(POLE, " jump over."), (POLE, " fall. Down")], 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_of_row_becomes_the_pairs_of_lm_eval(kind: str) -> None:
    line, row = ROWS[kind]
    assert parse_row(line) == row


def test_hellaswag_is_cleaned_as_lm_eval_does() -> None:
    assert clean_hellaswag(" Do it [title] Now [step] go  on ") == "Do it. Now go on"


class Scripted(nn.Module):
    """A model that likes exactly the bytes it is told to."""

    def __init__(self, liked: str) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        with torch.no_grad():
            self.bias[list(liked.encode())] = 1.0

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, -1))


def test_accuracy_prefers_short_answers_and_its_norm_does_not() -> None:
    # per byte the liked letter costs less, but five of them cost more than two others
    rows = [Row([("q", " xy"), ("q", " aaaaa")], gold) for gold in (1, 1, 1, 0)]
    score = score_task(Scripted("a"), Bytes(), rows, 32)
    assert (score.acc, score.acc_norm) == (0.25, 0.75)
    assert score.acc_stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert score.perplexity is None


def test_a_single_pair_is_right_when_greedy() -> None:
    model = Bigram()
    with torch.no_grad():
        model.table[ord("o"), ord(" ")] = model.table[ord(" "), ord("k")] = 50.0
    score = score_task(model, Bytes(), [Row([("go", " k")], 0), Row([("go", " j")], 0)], 32)
    assert score.acc == 0.5
    assert score.acc_norm is None
    assert score.perplexity is not None and score.perplexity > 1e6


def test_choices_that_differ_in_context_only_are_not_normalised() -> None:
    score = score_task(Bigram(), Bytes(), [ROWS["winogrande"][1]] * 2, 32)
    assert score.acc_norm is None


@pytest.mark.parametrize(
    "line", ["not json", "[]", '{"query": "q"}', '{"query": "q", "choices": ["a"], "gold": 1}', '"words"']
)
def test_a_bad_task_file_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(ROWS["arc"][0]) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=r"task\.jsonl, line 2"):
        read_task(path)
    path.write_text("\n")
    with pytest.raises(UsageError, match="no rows"):
        read_task(path)


def test_everything_at_once_is_plain_data(tmp_path: Path) -> None:
    text, task = tmp_path / "text.txt", tmp_path / "arc.jsonl"
    text.write_text("a text of some words, long enough for windows")
    task.write_text("\n".join([json.dumps(ROWS["arc"][0])] * 3))
    steps: list[tuple[str, int, int]] = []
    found = evaluate(
        Bigram(1, 0.1), Bytes(), [text], [task], Bigram(), length=16, limit=2,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    plain = json.loads(json.dumps(asdict(found)))
    assert plain["tasks"]["arc.jsonl"]["rows"] == 2
    assert 0 < plain["divergences"]["text.txt"]["kl"] < 0.1
    assert plain["texts"]["text.txt"]["perplexity"] > 1
    assert ("text.txt", 3, 3) in steps and ("arc.jsonl", 6, 6) in steps
    alone = evaluate(Bigram(1, 0.1), Bytes(), [text], length=16)
    assert alone.divergences == {}
    assert alone.texts["text.txt"].loss == pytest.approx(found.texts["text.txt"].loss)
