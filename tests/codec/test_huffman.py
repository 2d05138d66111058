"""Code lengths: optimal under the limit, complete, canonical as in RFC 1951."""

from __future__ import annotations

import heapq
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tersor.codec.huffman import canonical_codes, check_book, code_lengths, decode_table
from tersor.codec.streams import multi_table
from tersor.format.constants import MAX_CODE_BITS
from tersor.format.errors import BadBook

FIBONACCI = [1, 1]
while len(FIBONACCI) < 60:
    FIBONACCI.append(FIBONACCI[-1] + FIBONACCI[-2])


def counts_of(values: list[int]) -> NDArray[np.int64]:
    counts = np.zeros(256, np.int64)
    counts[: len(values)] = values
    return counts


def kraft(book: NDArray[np.uint8]) -> float:
    return sum(2.0 ** -int(length) for length in book if length)


def unlimited_cost(values: list[int]) -> int:
    """Bits of the best code without a limit: the sum of all merged weights of Huffman's algorithm."""
    heap = sorted(v for v in values if v)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def brute_force_cost(values: list[int], limit: int) -> int:
    """Bits of the best complete code with lengths up to `limit`, by trying every multiset of lengths."""
    falling = sorted(values, reverse=True)
    return min(
        sum(v * length for v, length in zip(falling, lengths, strict=True))
        for lengths in itertools.combinations_with_replacement(range(1, limit + 1), len(values))
        if sum(2 ** (limit - length) for length in lengths) <= 2**limit
    )


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=256))
@settings(max_examples=60)
def test_a_book_is_complete_and_within_the_limit(values: list[int]) -> None:
    counts = counts_of(values)
    book = code_lengths(counts)
    check_book(book)
    assert kraft(book) == 1.0
    assert book.max() <= MAX_CODE_BITS
    assert (book[counts > 0] > 0).all()
    assert np.count_nonzero(book) == max(2, np.count_nonzero(counts))


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=6), st.integers(3, 5))
@settings(max_examples=80)
def test_lengths_are_optimal_under_the_limit(values: list[int], limit: int) -> None:
    book = code_lengths(counts_of(values), limit)
    assert int((counts_of(values) * book).sum()) == brute_force_cost(values, limit)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=200))
@settings(max_examples=60)
def test_where_the_limit_does_not_bind_it_is_huffman(values: list[int]) -> None:
    counts = counts_of(values)
    cost, best = int((counts * code_lengths(counts)).sum()), unlimited_cost(values)
    deep = code_lengths(counts, limit=40)
    assert int((counts * deep).sum()) == best
    assert cost == best if deep.max() <= MAX_CODE_BITS else cost > best


def test_fibonacci_counts_meet_the_limit_at_small_cost() -> None:
    """The counts that make Huffman codes longest: symbol k would need k bits, and gets 12."""
    values = FIBONACCI[:40]
    counts = counts_of(values)
    assert code_lengths(counts, limit=40).max() == 39
    book = code_lengths(counts)
    check_book(book)
    assert book.max() == MAX_CODE_BITS
    assert (counts * book).sum() <= unlimited_cost(values) * 1.005


def test_all_symbols_equal_is_eight_bits() -> None:
    assert code_lengths(np.ones(256, np.int64)).tolist() == [8] * 256


@pytest.mark.parametrize("symbol", [0, 1, 255])
def test_one_symbol_is_given_a_second(symbol: int) -> None:
    counts = np.zeros(256, np.int64)
    counts[symbol] = 1000
    book = code_lengths(counts)
    assert book[symbol] == 1
    assert np.count_nonzero(book) == 2
    check_book(book)


def test_no_symbol_at_all_is_still_a_code() -> None:
    check_book(code_lengths(np.zeros(256, np.int64)))


def test_codes_are_those_of_rfc_1951() -> None:
    """The example of RFC 1951, section 3.2.2: ABCDEFGH with lengths 3, 3, 3, 3, 3, 2, 4, 4."""
    book = np.zeros(256, np.uint8)
    book[65:73] = [3, 3, 3, 3, 3, 2, 4, 4]
    codes = canonical_codes(book)
    written = [format(int(c), f"0{n}b")[::-1] for c, n in zip(codes[65:73], book[65:73], strict=True)]
    assert written == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=256))
@settings(max_examples=30)
def test_tables_decode_what_the_codes_say(values: list[int]) -> None:
    """For random 12-bit words: peel codes off one by one, by search; both tables agree."""
    book = code_lengths(counts_of(values))
    codes = canonical_codes(book)
    code_of = {(int(codes[s]), int(book[s])): int(s) for s in np.flatnonzero(book)}
    table = decode_table(book)
    symbols, meta = multi_table(book)
    for word in np.random.default_rng(0).integers(0, 4096, 40).tolist():
        rest, left, found = word, MAX_CODE_BITS, []
        while len(found) < 4:
            match = next((n for n in range(1, left + 1) if (rest & (1 << n) - 1, n) in code_of), None)
            if match is None:
                break
            found.append(code_of[rest & (1 << match) - 1, match])
            rest, left = rest >> match, left - match
        assert table[word] == found[0]
        assert int(symbols[word]).to_bytes(4, "little")[: len(found)] == bytes(found)
        assert meta[word] >> 4 == len(found)
        assert meta[word] & 15 == MAX_CODE_BITS - left


@pytest.mark.parametrize(
    "lengths",
    [[], [1], [1, 1, 1], [2, 2], [13, 13], [0, 255], [1, 2, 3], [12] * 255],
    ids=str,
)
def test_an_incomplete_or_overfull_book_is_refused(lengths: list[int]) -> None:
    book = np.zeros(256, np.uint8)
    book[: len(lengths)] = lengths
    with pytest.raises(BadBook, match=r"layer\.weight"):
        check_book(book, "layer.weight")


def test_the_cost_is_near_the_entropy() -> None:
    """A geometric distribution like that of trained exponents: within 0.05 bit of Shannon."""
    counts = counts_of([int(10**7 * 0.5**k) for k in range(20)])
    p = counts[counts > 0] / counts.sum()
    entropy = -sum(x * math.log2(x) for x in p)
    assert entropy <= (counts * code_lengths(counts)).sum() / counts.sum() < entropy + 0.05
