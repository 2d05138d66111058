"""The product for many tokens without a GPU: its builds, and where everything stands in shared memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.format.errors import KernelError
from tersor.kernels.compiler import compile_program
from tersor.kernels.spqr.layout import Geometry as Spqr
from tersor.kernels.tile import device
from tersor.kernels.tile.device import in_pieces, kept_for
from tersor.kernels.tile.variant import (
    ALONE,
    VARIANTS,
    WIDE,
    Build,
    ClusterVariant,
    StripVariant,
    Variant,
    fitting,
    variant_for,
)
from tersor.kernels.window.layout import Geometry as Window

BUILDS = [*(build for builds in VARIANTS.values() for build in builds), *WIDE, ALONE]
GEOMETRIES = (
    Window(4096, 4096),
    Spqr(4096, 4096, 4, 32, 2),
    Spqr(4096, 4096, 3, 16, 2),
    Spqr(4096, 4096, 8, 32, 1),
)
_SM_SHARED = 228 * 1024  # of an H200; a block has 1 KB less than it could
_BLOCK_SHARED = 227 * 1024


@pytest.mark.parametrize("steps", range(1, 40))
@pytest.mark.parametrize("slots", [2, 3, 4])
def test_a_ring_is_quiet_when_its_last_uses_have_ended(steps: int, slots: int) -> None:
    """cluster_linear's `quiet`: the parity it waits for is that of each slot's last use."""
    number, parity = steps % slots, steps // slots % 2  # Turn, after all steps
    for slot in range(slots):
        uses = len(range(slot, steps, slots))
        awaited = parity if slot < number else parity ^ 1
        assert awaited == (uses - 1) % 2


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["fast", "spqr-4", "spqr-3", "spqr-8"])
@pytest.mark.parametrize("size", [*VARIANTS, None])
def test_builds_fit(size: int | None, geometry: Window | Spqr) -> None:
    builds = fitting(size, geometry) if size else (*(b for b in WIDE if b.fits(geometry)), ALONE)
    assert builds
    for build in builds:
        shared = build.shared(geometry)
        assert build.fits(geometry)
        assert shared <= _BLOCK_SHARED
        assert build.blocks_per_sm * (shared + 1024) <= _SM_SHARED
        assert build.threads * build.blocks_per_sm <= 2048
        assert size is None or build.tokens * build.cluster >= size
        assert max(build.instruction_tokens, build.copy_tokens, build.stored_tokens) <= 256
        # Operand tiles begin at multiples of 1024, and so does every part of one.
        parts = build.tokens, build.instruction_tokens, build.copy_tokens, build.stored_tokens
        assert not any(part % 8 for part in parts)


@pytest.mark.parametrize("kind", [(16, 1), (16, 2), (32, 1), (32, 2), (128, 1)], ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_hundreds_of_tokens_have_a_build_in_every_layout(bits: int, kind: tuple[int, int]) -> None:
    matrix = Spqr(4096, 4096, bits, *kind)
    assert all(build.fits(matrix) for build in (*WIDE, ALONE))
    for tokens in (129, 200, 256, 257, 513, 4096):
        assert variant_for(tokens, matrix, 132).cluster == 2 or matrix.stage_bytes >= 1536
        assert variant_for(tokens, matrix, 1).cluster in (1, 2)


def test_rows_too_short_for_clusters_are_multiplied_by_blocks_alone() -> None:
    for cols in (64, 100, 256):
        assert variant_for(513, Window(4096, cols), 132) == ALONE
    assert variant_for(513, Window(4096, 512), 132).cluster == 2


def test_a_large_matrix_is_multiplied_by_blocks_alone_where_that_is_faster() -> None:
    """As measured: around 256 tokens, of layouts with many bytes to decode."""
    few, many, light = Window(4096, 4096), Window(28672, 4096), Spqr(28672, 4096, 4, 32, 2)
    chosen = {m: [variant_for(m, g, 132) for g in (few, many, light)] for m in (130, 192, 256, 257)}
    assert [[b.tokens if b.cluster == 2 else "alone" for b in builds] for builds in chosen.values()] == [
        [80, 80, 80],
        [96, 96, 96],
        [128, "alone", 128],
        [144, 144, 144],
    ]


def test_every_build_is_for_some_layout() -> None:
    found = {b for size in VARIANTS for geometry in GEOMETRIES for b in fitting(size, geometry)}
    assert found | {*WIDE, ALONE} == set(BUILDS)


def test_where_clusters_find_no_room_blocks_multiply_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(device, "_clusters", lambda *_: 0)
    device.planned.cache_clear()
    try:
        gpu, matrix = torch.device("cuda", 0), Window(4099, 4096)
        plan = device.planned(matrix, 400, 4, None, gpu)
        assert plan.variant == ALONE
        assert plan.launch.blocks[0] == plan.split.clusters
        with pytest.raises(KernelError, match="no room"):
            device.planned(matrix, 400, 4, WIDE[0], gpu)
    finally:
        device.planned.cache_clear()


@pytest.mark.parametrize("build", [build for build in BUILDS if isinstance(build, Variant)], ids=str)
def test_warps_take_turns(build: Variant) -> None:
    turns = build.decoders // 8
    assert turns <= build.a_slots  # nobody takes two turns in one round of a ring
    assert build.stages % turns == 0  # an area is always of the same warps


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_rings_are_deep_enough(build: Build) -> None:
    """For the steps that are under way at a time, and for the sums that leave through the last ones' places."""
    match build:
        case Variant():
            least = (
                2 if build.tokens > 64 else 1
            )  # BEHIND: its places are free when the next one is under way
            assert min(build.a_slots, build.x_slots) >= least
        case StripVariant():
            assert build.x_slots >= 2  # a step has one operand tile, sums leave through two
        case ClusterVariant():
            # Sums leave through the last stage, or two, and activations; the next tile's first two steps need others.
            assert build.x_slots >= 3 and build.a_slots >= 3
        case _:
            pytest.fail(f"nothing is said of {build}")


@pytest.mark.parametrize(("exceptions", "kept"), [(0, 1), (10, 1), (41, 2), (94, 4), (8192, 4)])
def test_registers_hold_the_exceptions_of_nearly_every_segment(exceptions: int, kept: int) -> None:
    geometry = Window(64, 1024)
    of_one = dict(geometry.macros)["RECORD_HEAD"] + 4 * exceptions
    records = torch.zeros(geometry.records * of_one, dtype=torch.uint8)
    places = torch.zeros(geometry.records + 1, dtype=torch.int32)
    assert kept_for(geometry, places, records) == kept
    upper = Window(32, 1024)  # of a joint matrix: all records, some places
    assert kept_for(upper, places[: upper.records + 1], records) == kept


def padded(tokens: int, build: Build) -> int:
    """Tokens of the tiles that hold so many."""
    tile = build.tokens * build.cluster
    return -(-tokens // tile) * tile


@pytest.mark.parametrize("rows", [64, 1 << 16])
def test_few_tokens_fill_half_of_their_tiles(rows: int) -> None:
    for tokens in range(1, 257):
        of_tiles = padded(tokens, variant_for(tokens, Window(rows, 1024), 132))
        assert of_tiles < 2 * tokens or of_tiles == 32


def test_many_tokens_fill_their_tiles() -> None:
    """Of a matrix that has work for all multiprocessors."""
    matrix = Window(57344, 8192)
    waste = np.array([padded(m, variant_for(m, matrix, 132)) / m - 1 for m in range(257, 5000)])
    assert waste.max() <= 0.25
    assert waste[513 - 257 :].max() <= 0.1  # 641 tokens in tiles of 704
    assert waste[513 - 257 :].mean() <= 0.035


def test_the_product_is_for_hopper() -> None:
    program = BUILDS[0].program(GEOMETRIES[0])
    assert program.target("sm_90") == "sm_90a"
    with pytest.raises(KernelError, match="sm_90 only"):
        program.target("sm_100")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["fast", "spqr-4", "spqr-3", "spqr-8"])
@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_the_tensor_cores_are_kept_busy(build: Build, geometry: Window | Spqr) -> None:
    """The compiler says when it must wait after each instruction, and that is all it does about it."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC is not installed")
    if not build.fits(geometry):
        pytest.skip("not for this layout")
    compiled = compile_program(build.program(geometry), "sm_90")
    if isinstance(build, StripVariant | ClusterVariant):
        # Or a warpgroup waits for ever for registers that nobody gives back, or the assembler leaves them as they are.
        consumer, other = build.registers
        others = build.threads - 128 * build.groups
        assert 128 * build.groups * consumer + others * other <= compiled.resources.registers * build.threads
        assert not consumer or others % 128 == 0
        assert "setmaxnreg" not in compiled.log
    assert compiled.resources.spills == 0
    assert "serialized" not in compiled.log


def swizzled(address: np.ndarray) -> np.ndarray:
    """wgmma's 128-byte swizzle of shared addresses in eight rows that begin at a multiple of 1024."""
    swizzled: np.ndarray = address ^ (address >> 7 & 7) << 4
    return swizzled


def lane_column(layout: int, h: int, t: int) -> int:
    """First column of a stage of lane t's sixteen of half h: window_stage.cuh, spqr_stage.cuh."""
    return 64 * h + 16 * t if layout == 0 else 32 * t + 16 * h


@pytest.mark.parametrize("layout", [0, 1])
def test_weights_and_activations_meet_in_the_same_places(layout: int) -> None:
    """Where lanes store their pieces and exceptions go (tile_patches.cuh): as tensor maps leave a matrix, swizzled.

    The two tiles of a stage take turns every eight rows, and no store has two lanes in the same banks.
    """
    spread = lane_column(layout, 0, 3) >= 64
    assert spread == (layout == 1)
    stored = np.full(4096, -1)  # byte of a strip's rows in both tiles -> 1000 * row + column
    for h in range(2):
        on, of_half = lane_column(layout, h, 0) % 64 // 8 << 4, lane_column(layout, h, 0) // 64 * 1024
        places = np.zeros((2, 2, 32), int)  # of a piece, rows below, lane
        for lane in range(32):
            g, t = divmod(lane, 4)
            turned = int(lane_column(layout, 0, t) >= 64)
            column = lane_column(layout, turned, t) % 64
            first = turned * 1024 + g * 128 + ((column // 8 ^ g) << 4)
            mine = lane_column(layout, h ^ turned, t) + np.arange(16)
            for j in range(2):
                for below in range(2):
                    at = (first ^ 16 * j ^ on) + of_half + 2048 * below
                    places[j, below, lane] = at // 16 % 8
                    assert np.all(stored[at : at + 16 : 2] == -1)
                    stored[at : at + 16 : 2] = 1000 * (g + 8 * below) + mine[8 * j : 8 * j + 8]
        assert all(len(set(eight)) == 8 for eight in places.reshape(-1, 8))  # lanes that store at a time
    byte = np.arange(0, 4096, 2)
    row, tile, place = byte // 2048 * 8 + byte // 128 % 8, byte // 1024 % 2, byte % 128 // 2
    assert np.array_equal(stored[swizzled(byte)], 1000 * row + 64 * tile + place)
    for column in range(512):
        for row_ in range(16):
            rows = row_ // 8 << 11 | row_ % 8 << 7
            placed = (column // 128 << 12 | column // 64 % 2 << 10 | rows | column % 64 * 2) ^ row_ % 8 << 4
            assert placed >> 12 == column // 128
            assert stored[placed & 4095] == 1000 * row_ + column % 128


def test_activations_are_copied_only_where_pieces_are_not_whole() -> None:
    x = torch.arange(6.0 * 80).bfloat16().view(6, 80)
    for same in (x, x[:, 16:72], x[::2], x[:1, :40], x.as_strided((1, 80), (3, 1))):
        assert in_pieces(same) is same
    flat = torch.arange(6.0 * 80 + 1).bfloat16()
    overlapping = x[:1].expand(6, 80), flat.as_strided((6, 40), (16, 1))
    for other in (
        x[:, 3:43],
        x[:, :77],
        flat[1:].view(6, 80),
        flat[:477].view(53, 9),
        x.T[:, :5],
        x.T,
        *overlapping,
    ):
        pieces = in_pieces(other)
        tokens, cols = other.shape
        assert pieces.shape == (tokens, -(-cols // 8) * 8)
        assert pieces.is_contiguous()
        assert pieces.data_ptr() % 16 == 0
        assert torch.equal(pieces[:, :cols], other)
        assert not pieces[:, cols:].any()


@pytest.mark.parametrize("layout", [0, 1])
def test_stores_of_a_quarter_warp_meet_in_no_bank(layout: int) -> None:
    for h in range(2):
        for j in range(2):
            for first in range(0, 32, 8):
                lanes = np.arange(first, first + 8)
                g, t = lanes // 4, lanes % 4
                column = lane_column(layout, 0, 0) + np.array([lane_column(layout, 0, i) for i in t])
                on = lane_column(layout, h, 0) % 64 // 8
                at = g * 128 + ((column % 64 // 8 ^ g ^ j ^ on) << 4)
                for tile in range(2):  # of one tile at a time, where a half goes to both
                    banks = (at // 16 % 8)[(column // 64 == tile)] if layout == 1 else at // 16 % 8
                    assert len(set(banks)) == len(banks)


@pytest.mark.parametrize(
    ("tokens", "width"),
    [
        (32, 32),
        (64, 64),
        (128, 64),
        (128, 128),
        (176, 176),
        (208, 208),
        (256, 128),
        (256, 256),
        (272, 136),
        (336, 168),
        (352, 176),
    ],
)
def test_sums_leave_as_a_tensor_map_takes_them(tokens: int, width: int) -> None:
    """`Sums::write` (tile_sums.cuh): 64 rows as their warpgroup's lanes hold them, to a swizzled box of y."""
    lane = np.arange(32)
    stored = np.full(128 * tokens, -1)  # byte of the box -> 1000 * row + token
    for warp in range(4):
        of = np.empty((tokens // width, width // 2, 32), int)  # Sums::of, of all lanes: wgmma.cuh
        for n in range(tokens // width):
            for i in range(width // 2):
                row, token = 16 * warp + lane // 4 + i % 4 // 2 * 8, i // 4 * 8 + 2 * (lane % 4) + i % 2
                of[n, i] = 1000 * row + width * n + token
        to = (lane // 16 * 8 + lane % 8) * 128 + (((warp * 2 + lane // 8 % 2) ^ lane % 8) << 4)
        for j in range(0, tokens // 8, 2):
            pairs = np.empty((4, 32, 2), int)
            for k in range(2):
                own = of[(j + k) // (width // 8), (j + k) % (width // 8) * 4 :][:4]
                pairs[2 * k], pairs[2 * k + 1] = own[:2].T, own[2:].T
            for number, of_lanes in enumerate(pairs):  # stmatrix: lane l has row l / 4, two of its columns
                matrix = of_lanes.reshape(8, 8)
                addresses = to[8 * number : 8 * number + 8] + j * (8 * 128)
                assert len(set(addresses // 16 % 8)) == 8  # in no bank two of them
                for column, at in zip(matrix.T, addresses, strict=True):  # .trans
                    assert np.all(stored[at : at + 16 : 2] == -1)
                    stored[at : at + 16 : 2] = column
    row, token = np.meshgrid(np.arange(64), np.arange(tokens))
    assert np.array_equal(stored[swizzled(128 * token + 2 * row)], 1000 * row + token)
