"""FORMAT.md and the code say the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.format import constants as c
from tersor.format.dtypes import RAW_BYTES

TEXT = (Path(__file__).parents[2] / "FORMAT.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        f"format, version {c.FORMAT_VERSION}",
        f'"quant_method": "{c.QUANT_METHOD}"',
        f'"format_version": {c.FORMAT_VERSION}',
        f"`{c.MANIFEST_KEY}`, a JSON object",
        f"at most {c.MAX_HEADER_BYTES:,} bytes",
        f"## 3. Codec `{c.CODEC_HUFFMAN}`",
        f"| `{c.CODEC_RAW}` | NAME |",
        f"`_book` | U8 | [{c.SYMBOLS}]",
        f"tile offsets in units of {c.ALIGN} bytes",
        f"[{c.ALIGN} · offsets[tiles] + {c.TAIL}]",
        f"{c.SYMBOLS} code lengths, 0 (symbol not used) to {c.MAX_CODE_BITS}",
        f"MUST be exactly {1 << c.MAX_CODE_BITS}",
        f"product is at least {c.MIN_COLS}",
        f"{c.TILE_ROWS} rows by {c.TILE_COLS} columns",
        f"streams of {c.STREAM} elements",
        f"a full tile has {c.TILE_ROWS * c.TILE_COLS // c.STREAM}",
    ],
)
def test_the_text_has_the_constants(words: str) -> None:
    assert words in TEXT


def test_the_table_of_symbols_has_the_raw_bytes() -> None:
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") >= 5]
    found = {}
    for row in rows:
        for dtype in row[1].replace(" ", "").split(","):
            if dtype in RAW_BYTES:
                found[dtype] = int(row[-2])
    assert found == RAW_BYTES
