"""In which order columns are quantised, and how a result is laid out afterwards.

Error feedback lets later columns repair earlier ones, so the columns that matter most go first:
*act-order*, by falling diagonal of the Hessian. Groups then hold columns that were not neighbours,
and whoever multiplies has to gather its input in the same order. Ordering whole *groups* instead
keeps neighbours together: the result goes back to its original places and nothing needs to know. (Within a
group columns share their grid, so there too the heavier ones go first, and a group that is the whole row
has full act-order for nothing.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tersor.codec.quantized.dequantize import inverse
from tersor.codec.quantized.matrix import Quantized
from tersor.quantize.settings import ActOrder, Settings


def column_order(diagonal: npt.NDArray[np.float64], settings: Settings) -> npt.NDArray[np.int32]:
    """The order of quantisation; `diagonal` is that of the Hessian, (C,). Ties keep their order."""
    columns = len(diagonal)
    if settings.act_order == "none":
        return np.arange(columns, dtype=np.int32)
    if settings.act_order == "columns":
        return np.argsort(-diagonal, kind="stable").astype(np.int32)
    group = settings.group_size(columns)
    whole = columns // group * group  # a cut-off last group stays last
    groups = diagonal[:whole].reshape(-1, group)
    heavy = np.argsort(-groups.sum(axis=1), kind="stable")
    inside = np.argsort(-groups, axis=1, kind="stable")
    places = (heavy[:, None] * group + inside[heavy]).reshape(-1)
    return np.concatenate([places, whole + np.argsort(-diagonal[whole:], kind="stable")]).astype(np.int32)


def settle(q: Quantized, order: npt.NDArray[np.int32], act_order: ActOrder) -> Quantized:
    """Finish a result whose columns are in `order`: record it, or undo it where groups allow that."""
    columns = q.shape[1]
    if np.array_equal(order, np.arange(columns)):
        return q
    if act_order == "columns":
        return replace(q, order=order)
    undo = inverse(order)
    groups = undo[:: q.group] // q.group
    row, column = np.divmod(q.outlier_index, columns)
    index = row * columns + order.astype(np.int64)[column]
    rising = np.argsort(index, kind="stable")
    return replace(
        q,
        codes=np.ascontiguousarray(q.codes[:, undo]),
        scale_codes=np.ascontiguousarray(q.scale_codes[:, groups]),
        zero_codes=np.ascontiguousarray(q.zero_codes[:, groups]),
        stats=np.ascontiguousarray(q.stats[:, groups]),
        outlier_index=index[rising],
        outlier_value=q.outlier_value[rising],
    )
