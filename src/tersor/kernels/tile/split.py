"""How a product's tiles are dealt out to blocks of threads: cuda/tile_work.cuh in Python, and the choice.

A tile is 128 rows x N tokens of the result, times the blocks of a cluster where they work together; a unit is
one segment (512 columns) of a tile. Units stand in the order (rows, tokens, columns): blocks that work at the
same time use the same weights. Every cluster (of one block, mostly) takes a nearly equal run of them
("stream-K"), so that the GPU is busy to the end whatever the shape is. Tiles that are cut cost a trip of their
sums through memory and a kernel that adds them, so where whole tiles come out even they are left whole.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE_ROWS = 128
# What cutting adds to a block's run, in units: a launch, and the sums' way to memory and back (reckoned).
_LAUNCH_COST, _TOKENS_PER_UNIT = 0.5, 128


@dataclass(frozen=True)
class Split:
    """`units` of `segments` per tile, over `clusters` of blocks; runs begin at multiples of `chunk` units."""

    segments: int
    token_tiles: int
    units: int
    chunk: int
    clusters: int

    def begin(self, cluster: int) -> int:
        """The first unit of a cluster's run; it ends where the next one's begins."""
        return self.units // self.chunk * cluster // self.clusters * self.chunk

    @property
    def cuts(self) -> bool:
        """Whether some tile is cut."""
        return self.chunk % self.segments != 0


def choose(
    rows: int, tokens: int, segments: int, tile_tokens: int, places: int, cluster: tuple[int, int] = (1, 1)
) -> Split:
    """The split over `places`, the clusters of blocks that the GPU can hold, that is done first."""
    token_tiles = -(-tokens // (tile_tokens * cluster[1]))
    tiles = -(-rows // (TILE_ROWS * cluster[0])) * token_tiles
    units = tiles * segments
    whole, even = -(-tiles // places) * segments, -(-units // places)
    if whole <= even + _LAUNCH_COST + tile_tokens / _TOKENS_PER_UNIT:
        return Split(segments, token_tiles, units, segments, min(tiles, places))
    return Split(segments, token_tiles, units, 1, min(units, places))
