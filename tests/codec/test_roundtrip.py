"""The compiled codec is the reference, bit for bit, over dtypes and shapes; both give back every byte."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crafting import HUFFMAN_DTYPES, U8, gaussian_bytes
from tersor.codec import Packed, fast, reference
from tersor.format.errors import UnknownDtype, WrongShape

SHAPES = [
    (),
    (1,),
    (2,),
    (63,),
    (64,),
    (65,),
    (127,),
    (128,),
    (129,),
    (255,),
    (256,),
    (257,),
    (1, 1),
    (7, 11),
    (97, 101),
    (2, 3, 5, 7),
    (512, 8, 3),
    (3, 5, 67),
    (1, 10007),
    (10007, 1),
    *((rows, cols) for rows in (15, 16, 17) for cols in (127, 128, 129, 255, 256, 257)),
    (33, 513),
    (20 * 16 - 3, 13 * 256 + 1),  # 280 tiles: more than the 256 that are one piece of work
]


def assert_same(a: Packed, b: Packed) -> None:
    """Equal in every stored byte."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    for mine, other in ((a.book, b.book), (a.offsets, b.offsets), (a.tiles, b.tiles)):
        assert mine.dtype == other.dtype
        assert mine.tobytes() == other.tobytes()


def check(data: U8, dtype: str, shape: tuple[int, ...]) -> None:
    """Encode and decode by both; what comes out is equal, and the original."""
    plain, compiled = reference.encode(data, dtype, shape), fast.encode(data, dtype, shape)
    assert_same(plain, compiled)
    assert (reference.histogram(data, dtype) == fast.histogram(data, dtype)).all()
    assert reference.decode(compiled).tobytes() == data.tobytes()
    assert fast.decode(plain).tobytes() == data.tobytes()


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy_and_numba_agree(dtype: str, shape: tuple[int, ...]) -> None:
    check(gaussian_bytes(shape, dtype, seed=1), dtype, shape)


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
@pytest.mark.parametrize("shape", [(1,), (17, 257), (97, 101), (3, 5, 67)], ids=str)
def test_incompressible_noise_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, math.prod(shape) * HUFFMAN_DTYPES[dtype], np.uint8)
    check(noise, dtype, shape)


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
@pytest.mark.parametrize("byte", [0, 0x80, 0xFF])
def test_one_symbol(dtype: str, byte: int) -> None:
    check(np.full(33 * 300 * HUFFMAN_DTYPES[dtype], byte, np.uint8), dtype, (33, 300))


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
def test_tiles_of_every_fill(dtype: str) -> None:
    """One tile of every height at some widths, and of every width at some heights."""
    sizes = [(h, w) for h in range(1, 17) for w in (1, 128, 129, 256)]
    sizes += [(h, w) for h in (1, 5) for w in range(1, 257, 3)]
    for h, w in sizes:
        data = gaussian_bytes((h, w), dtype, seed=h * 257 + w)
        packed = fast.encode(data, dtype, (h, w))
        assert fast.decode(packed).tobytes() == data.tobytes(), (h, w)


@given(
    dtype=st.sampled_from(sorted(HUFFMAN_DTYPES)),
    shape=st.lists(st.integers(1, 40), max_size=3).map(tuple),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([1, 2, 3, 17, 256]),
)
@settings(max_examples=120)
def test_any_tensor(dtype: str, shape: tuple[int, ...], seed: int, spread: int) -> None:
    """Any shape, any bytes: from one value (spread 1) to noise (spread 256)."""
    size = math.prod(shape) * HUFFMAN_DTYPES[dtype]
    rng = np.random.default_rng(seed)
    check(rng.integers(0, spread, size, np.uint8) * np.uint8(255 // spread), dtype, shape)


@given(st.binary(min_size=2, max_size=600).filter(lambda b: len(b) % 4 == 0))
@settings(max_examples=100)
def test_any_bytes(content: bytes) -> None:
    for dtype, size in HUFFMAN_DTYPES.items():
        check(np.frombuffer(content, np.uint8), dtype, (len(content) // size,))


def test_a_given_book_is_used(codec: ModuleType) -> None:
    data = gaussian_bytes((32, 256))
    uniform = np.full(256, 8, np.uint8)
    packed = codec.encode(data, "BF16", (32, 256), uniform)
    assert (packed.book == 8).all()
    assert packed.tiles.size - 16 == 2 * (4096 + 32 + 4096)  # raw, lengths, symbols of 8 bits each
    assert codec.decode(packed).tobytes() == data.tobytes()


def test_an_empty_tensor_is_not_for_this_codec(codec: ModuleType) -> None:
    with pytest.raises(ValueError, match="stored raw"):
        codec.encode(np.zeros(0, np.uint8), "BF16", (0, 64))
    assert codec.histogram(np.zeros(0, np.uint8), "BF16").tolist() == [0] * 256
    empty = Packed("BF16", (0, 64), np.full(256, 8, np.uint8), np.zeros(1, np.uint32), np.zeros(16, np.uint8))
    with pytest.raises(WrongShape, match="'w'"):
        codec.decode(empty, "'w'")


def test_a_book_without_a_needed_code_is_refused(fast: ModuleType) -> None:
    book = np.zeros(256, np.uint8)
    book[:2] = 1
    with pytest.raises(ValueError, match="no code"):
        fast.encode(gaussian_bytes((64, 64)), "BF16", (64, 64), book)


def test_many_callers_at_once(fast: ModuleType) -> None:
    """The thread pool is shared: eight encodings and decodings side by side."""
    shape = (300, 1500)
    tensors = [gaussian_bytes(shape, seed=i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        packed = list(pool.map(lambda data: fast.encode(data, "BF16", shape), tensors))
        decoded = list(pool.map(fast.decode, packed))
    for data, made, back in zip(tensors, packed, decoded, strict=True):
        assert back.tobytes() == data.tobytes()
        assert_same(made, reference.encode(data, "BF16", shape))


def test_other_dtypes_are_refused(codec: ModuleType) -> None:
    with pytest.raises(UnknownDtype, match="I64"):
        codec.encode(np.zeros(64, np.uint8), "I64", (8,))


def test_readonly_and_unaligned_input(codec: ModuleType) -> None:
    data = gaussian_bytes((20, 300), "F32")
    expected = reference.encode(data, "F32", (20, 300))
    buffer = np.zeros(data.size + 1, np.uint8)
    buffer[1:] = data
    unaligned = buffer[1:]
    unaligned.flags.writeable = False
    assert_same(codec.encode(unaligned, "F32", (20, 300)), expected)
    for array in (expected.book, expected.offsets, expected.tiles):
        array.flags.writeable = False
    assert codec.decode(expected).tobytes() == data.tobytes()


@pytest.mark.parametrize("dtype", HUFFMAN_DTYPES)
def test_out_is_filled_whatever_it_held(codec: ModuleType, dtype: str) -> None:
    data = gaussian_bytes((35, 391), dtype)
    packed = codec.encode(data, dtype, (35, 391))
    for poison in (0x00, 0xAA, 0xFF):
        out = np.full(data.size, poison, np.uint8)
        assert codec.decode(packed, out=out) is out
        assert out.tobytes() == data.tobytes()


def test_threads_do_not_change_bytes(fast: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (700, 2600)  # 484 tiles: two pieces of work
    data = gaussian_bytes(shape)
    made = []
    for count in ("1", "2", "5"):
        monkeypatch.setenv("TERSOR_THREADS", count)
        made.append(fast.encode(data, "BF16", shape))
        assert fast.decode(made[-1]).tobytes() == data.tobytes()
    assert_same(made[0], made[1])
    assert_same(made[0], made[2])
