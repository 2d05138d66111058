"""One small call of every kernel, for compute-sanitizer.

    compute-sanitizer --tool memcheck --report-api-errors no python bench/sanitize.py
    compute-sanitizer --tool racecheck python bench/sanitize.py --without-tile

At its first call cuda-bindings asks the driver for each of the five hundred functions that it knows, and a driver
that is older than the bindings answers with an error for those it lacks. Without `--report-api-errors no`
memcheck reports every such answer of cuGetProcAddress as an error: 34 where a driver of CUDA 13.0 meets the
functions of 13.1 to 13.3. They say nothing of our kernels, whose accesses are checked either way; what the driver
answers to our own calls, `tersor.kernels.launcher` checks.

racecheck knows barriers of the kind of __syncthreads and named ones, not those in shared memory that count bytes
(cuda/mbarrier.cuh), through which all warps of the tile product meet, and the blocks of a cluster (cuda/exchange.cuh):
it reports every one of their exchanges. `--without-tile` leaves both out, and with them all products of sixteen tokens
by warpgroups.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from tersor.kernels import bench_spqr
from tersor.kernels.dfloat11 import device as dfloat11
from tersor.kernels.dfloat11.encode import encode
from tersor.kernels.fused.variant import Variant
from tersor.kernels.huffman import device as huffman
from tersor.kernels.launcher import shared_limit
from tersor.kernels.spqr import device as spqr
from tersor.kernels.tile import device as tile
from tersor.kernels.tile.variant import ALONE, VARIANTS, WIDE, fitting
from tersor.kernels.window import device as window

w = (torch.randn(130, 1600, device="cuda") * 0.02).bfloat16()
w[::7] *= torch.exp2(torch.randint(-20, 20, (1600,), device="cuda").float()).bfloat16()
stored = huffman.encode(w, "BF16")
assert torch.equal(huffman.decode(*stored, "BF16", torch.empty_like(w)), w)
twice = huffman.decode_many([stored, stored], "BF16", [torch.empty_like(w), torch.empty_like(w)])
assert all(torch.equal(one, w) for one in twice)
for weights in (
    (torch.randn(40001, device="cuda") * 0.02).bfloat16(),
    torch.full((40001,), 1.5, device="cuda").bfloat16(),
):
    assert torch.equal(dfloat11.decode(encode(weights), torch.empty_like(weights)), weights)
rows = torch.tensor([3, 129, 64], device="cuda")
assert torch.equal(huffman.decode_rows(*stored, "BF16", w.shape, rows, w.new_empty(3, 1600)), w[rows])
packed = window.pack(w)
assert torch.equal(window.decode(packed), w)
for tokens, variant in (
    (1, Variant(1, 8, 2, 2)),
    (8, Variant(8, 20, 2)),
    (11, Variant(16, 8, 2, 2, 1)),
    (32, Variant(32, 16, 2, 1, 1, 1)),
):
    x = torch.randn(tokens, 1600, device="cuda", dtype=torch.bfloat16)
    y = window.linear(x, packed, None, variant)
    torch.testing.assert_close(
        y.double(), x.double() @ w.double().T, rtol=0.02, atol=1e-2 * float(y.abs().max())
    )
with_tile = tile.supported(w.device) and "--without-tile" not in sys.argv
if with_tile:
    tile_builds = [build for size in VARIANTS for build in fitting(size, packed.geometry)]
    # Of two instructions, of one; with decoders in turns, and registers dealt out then.
    tile_builds += [ALONE, WIDE[0], *(b for b in WIDE if b.tokens in (272, 256, 192, 80))]
    for build in tile_builds:
        x = torch.randn(build.tokens * build.cluster + 3, 1600, device="cuda", dtype=torch.bfloat16)
        y = tile.tile_linear(x, packed, None, build)
        torch.testing.assert_close(
            y.double(), x.double() @ w.double().T, rtol=0.02, atol=1e-2 * float(y.abs().max())
        )
for kind in (bench_spqr.FOUR_BITS, bench_spqr.THREE_BITS, replace(bench_spqr.FOUR_BITS, full_row=True)):
    own = bench_spqr.sample(130, 1600, kind)
    few: list[tuple[int, Variant | None]] = [(1, Variant(1, 8, 4, 2)), (8, Variant(8, 16, 4))]
    for tokens, spqr_build in few + [(20, None)] * with_tile:
        x = torch.randn(tokens, 1600, device="cuda", dtype=torch.bfloat16)
        y = spqr.linear(x, own.matrix, None, spqr_build)
        exact = x.double() @ own.weight.double().T
        torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=1e-2 * float(y.abs().max()))
if with_tile:
    own = bench_spqr.sample(130, 1600, bench_spqr.FOUR_BITS)
    for build in (b for b in WIDE if b.tokens in (320, 272, 256, 192, 80)):
        x = torch.randn(build.tokens * build.cluster + 3, 1600, device="cuda", dtype=torch.bfloat16)
        y = tile.tile_linear(x, own.matrix, None, build)
        exact = x.double() @ own.weight.double().T
        torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=1e-2 * float(y.abs().max()))
    # Of the second, eight rounds where a round has one strip.
    for height, width in ((130, 1600), (1800, 8192)):
        own = bench_spqr.sample(height, width, bench_spqr.FOUR_BITS)
        for consumers, blocks in ((8, 2), (2, 1)):
            alone = Variant(16, consumers, 4, blocks, 1)
            clustered = alone.in_cluster(own.matrix.geometry, shared_limit(w.device))
            assert clustered != alone
            builds = dict.fromkeys((alone, alone.in_warpgroups(), clustered.in_warpgroups()))
            for tokens in (9, 16):
                x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
                y = spqr.linear(x, own.matrix, None, clustered)
                assert all(torch.equal(y, spqr.linear(x, own.matrix, None, build)) for build in builds)
print("done")
