"""How a product's tiles are dealt out to blocks of threads: cuda/tile_work.cuh in Python, and the choice.

A tile is 128 rows x N tokens of the result, times the blocks of a cluster where they work together; a unit is
one stage (128 columns) of a tile. Units stand in the order (rows, tokens, columns): blocks that work at the
same time use the same weights. Every cluster (of one block, mostly) takes a nearly equal run of them
("stream-K"), so that the GPU is busy to the end whatever the shape is. The parts of a tile that is cut take a trip
through memory, one after another into the block that owns it (cuda/tile_parts.cuh), so there should be few: runs may
be made to begin only at multiples of a half, a third, ... of a tile, and where whole tiles come out even they are left
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tersor.kernels.fused.layout import STAGE_COLS

TILE_ROWS = 128
# Cycles, reckoned: of a unit's two steps, for the tensor cores per token and at least for decoding; of parts on their
# way from block to block, which are a flag's, for all at once, and those of their bytes through a multiprocessor.
_STEPS, _STEP_PER_TOKEN, _STEP_LEAST = 2, 4, 400
_FLAG, _BYTES_PER_CYCLE = 1500, 50
# Clusters with whole tiles are at the same columns at the same time, and read the same activations. Of more bytes than
# these, those that are elsewhere find less in an H200's L2 cache, and take so many times as long (measured with 28 and
# with 38 to 56 MiB).
_APART = ((37 << 20, 1.1), (24 << 20, 1.04))


@dataclass(frozen=True)
class Split:
    """`units` of `stages` per tile, over `clusters` of blocks; runs begin at multiples of `chunk` units."""

    stages: int
    token_tiles: int
    units: int
    chunk: int
    clusters: int

    @property
    def period(self) -> int:
        """Of how many kinds clusters are by where in a tile their runs begin, if runs are equal; else 1."""
        chunks = self.units // self.chunk
        if chunks % self.clusters:
            return 1
        of_tile = max(1, self.stages // self.chunk)
        return of_tile // gcd(of_tile, chunks // self.clusters)

    def dispatched(self, place: int) -> int:
        """The cluster that the blocks are which a GPU dispatches as the `place`-th.

        The first find multiprocessors that the launch before has left already, so they can begin some microseconds
        before the last. Of equal runs the first are those that end where a tile does: if they are shorter than it,
        somebody waits for their parts. And who waits for parts is never dispatched before those who have them.
        """
        of_kind = self.clusters // self.period
        kind = self.period - 1 - place // of_kind
        return (of_kind - 1 - place % of_kind) * self.period + kind

    def begin(self, cluster: int) -> int:
        """The first unit of a cluster's run; it ends where the next one's begins."""
        return self.units // self.chunk * cluster // self.clusters * self.chunk

    @property
    def cuts(self) -> bool:
        """Whether some tile is cut."""
        return self.chunk % self.stages != 0

    @property
    def parts(self) -> int:
        """The most clusters that have a part of one tile.

        Of n chunks, the k - 2 runs that lie between the first and the last one have at most n - 2, and k - 2
        runs have floor((k - 2) chunks / clusters) of them or more.
        """
        chunks, of_tile = self.units // self.chunk, -(-self.stages // self.chunk)
        return min(of_tile, -(-(of_tile - 1) * self.clusters // chunks) + 1)

    def time(self, tile_tokens: int) -> float:
        """Until the last cluster is done, in units: the longest run, a part left and the others' parts added."""
        chunks = self.units // self.chunk
        run = -(-chunks // self.clusters) * self.chunk
        return run + (_joining(self.parts, tile_tokens) if self.parts > 1 else 0.0)

    def cost(self, tokens: int, tile_tokens: int) -> float:
        """`time`, and more where clusters read so many activations in different places."""
        read = 2 * tokens * self.stages * STAGE_COLS
        apart = next((times for most, times in _APART if read > most), 1.0) if self.cuts else 1.0
        return self.time(tile_tokens) * apart


def _fewest_clusters(chunks: int, places: int) -> int:
    """As few as have equal runs no longer than those of as many as there is room for, or so many."""
    fewest = -(-chunks // -(-chunks // places))
    return fewest if chunks % fewest == 0 else min(chunks, places)


def _joining(parts: int, tile_tokens: int) -> float:
    """The way of a tile's parts to the block that adds them, in units."""
    unit = _STEPS * max(_STEP_LEAST, _STEP_PER_TOKEN * tile_tokens)
    return (_FLAG + parts * 4 * TILE_ROWS * tile_tokens / _BYTES_PER_CYCLE) / unit


def choose(rows: int, tokens: int, stages: int, tile_tokens: int, places: int, cluster: int = 1) -> Split:
    """The split over `places`, the clusters of blocks that the GPU can hold, that is done first."""
    token_tiles = -(-tokens // (tile_tokens * cluster))
    units = -(-rows // TILE_ROWS) * token_tiles * stages
    chunks = (stages // parts for parts in range(1, stages + 1) if stages % parts == 0)
    splits = [
        Split(stages, token_tiles, units, chunk, _fewest_clusters(units // chunk, places)) for chunk in chunks
    ]  # whole tiles first
    return min(splits, key=lambda split: split.cost(tokens, tile_tokens))
