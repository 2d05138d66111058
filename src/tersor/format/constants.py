"""The numbers of FORMAT.md, each written once.

Everything that reads or writes checkpoints, and every kernel (the CUDA text is rendered
from these values), takes them from here.
"""

from __future__ import annotations

FORMAT_VERSION = 1
QUANT_METHOD = "tersor"  # config.json: quantization_config.quant_method
MANIFEST_KEY = "tersor"  # safetensors __metadata__ key that holds the manifest

CODEC_RAW = "raw"
CODEC_HUFFMAN = "huffman"
CODEC_SPQR = "spqr"
CODEC_INTEGERS = "integers"

TILE_ROWS = 16  # the m of mma.m16n8k16: a tile is one strip of rows
TILE_COLS = 256
STREAM = 128  # symbols per stream; 16 x 256 / 128 = 32 streams, one per lane of a warp
ALIGN = 16  # bytes: offsets are in units of it, the widest load of a GPU thread
TAIL = 16  # zero bytes after the last tile, so that an 8-byte peek never leaves the buffer

SYMBOLS = 256
MAX_CODE_BITS = 12  # a 4096-entry table decodes any code in one look-up
MIN_ELEMENTS = 4096  # what our writers code; below this, tables and index eat what coding saves
MIN_COLS = 64  # trailing dimensions are merged until a row has at least this many columns

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
