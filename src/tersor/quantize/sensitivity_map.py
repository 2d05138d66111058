"""Which weights of a layer matter: the picture of the SpQR paper's Figure 2.

The sensitivity of a weight is what rounding it alone would add to the layer's squared output error when
all later columns may repair it: (w - round(w))^2 / [H^-1]_jj, here on the min-max grid of its row. It is
given in units of the layer's mean Var_i(w) / d_j^2, the unit of `tau`, so a threshold can be read off the
picture. Outliers of whole rows and columns, stripes of attention heads and the pattern of rotary
embeddings show at a glance.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tersor.codec.quantized.dequantize import inverse
from tersor.codec.quantized.matrix import Quantized
from tersor.quantize.factor import inverse_factor
from tersor.quantize.grid import rounding_error

LARGEST = 1024  # pixels a side; larger layers are pooled by their maximum, so no outlier is lost
FLOOR, CEILING = 1e-4, 1.0  # sensitivities drawn darkest and brightest
OUTLIER = (255, 64, 32)


def sensitivity_map(
    weight: Tensor, h: Tensor, bits: int = 3, percdamp: float = 1.0
) -> npt.NDArray[np.float32]:
    """Sensitivity of every weight of a (R, C) matrix under the Hessian `h` (C, C), in units of tau."""
    w = weight.detach().double().T
    d = inverse_factor(h, percdamp).square().sum(dim=0).sqrt()  # the root of diag(H^-1): order plays no role
    unit = (w.var(dim=1, unbiased=False) / d.square()).mean().clamp(min=1e-300)
    error = rounding_error(w, d, w.amin(dim=0), w.amax(dim=0), (1 << bits) - 1)
    return (error / unit).T.float().cpu().numpy()


def outlier_mask(q: Quantized) -> npt.NDArray[np.bool_]:
    """Where `q` keeps outliers, (R, C) in original column order."""
    mask = np.zeros(q.codes.size, dtype=np.bool_)
    mask[q.outlier_index] = True
    mask = mask.reshape(q.shape)
    return mask if q.order is None else mask[:, inverse(q.order)]


def draw(
    sensitivity: npt.NDArray[np.float32], outliers: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.uint8]:
    """A picture (height, width, 3): logarithmic grey, outliers in red."""
    pool = -(-max(sensitivity.shape) // LARGEST)
    level = np.log(np.clip(_pool(sensitivity, pool), FLOOR, CEILING) / FLOOR) / np.log(CEILING / FLOOR)
    picture = np.repeat((255 * level).astype(np.uint8)[..., None], 3, axis=2)
    if outliers is not None:
        picture[_pool(outliers, pool)] = OUTLIER
    return picture


def _pool(x: npt.NDArray[np.generic], by: int) -> npt.NDArray[np.generic]:
    """The maximum of each square of `by` a side; those at the edge may be smaller."""
    if by == 1:
        return x
    x = np.maximum.reduceat(x, np.arange(0, x.shape[0], by), axis=0)
    pooled: npt.NDArray[np.generic] = np.maximum.reduceat(x, np.arange(0, x.shape[1], by), axis=1)
    return pooled


def write_png(path: str | Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write an 8-bit RGB picture (height, width, 3). PNG needs no more than zlib."""
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(picture))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    with Path(path).open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            file.write(
                struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            )
