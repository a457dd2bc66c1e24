"""KL costs with measurement noise removed, so that a budget is not spent on chance.

All linears share one curve over the formats, times how sensitive the action is to the linear: in logarithms a sum of
two effects, fitted to all linears at once. Of the residual, the share is kept that repeats when measured with other
codes on other sequences. Without this the solver picks whichever of hundreds of numbers came out low by chance
(benchmarks/LOG.md). Knows numbers only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


def shrink(first: Table, second: Table) -> tuple[Table, float]:
    """Two measurements (linears, formats) of KL costs -> the estimate, and the share of the residual that was kept.

    NaN where a linear has no such format, and it stays. A cost that is zero in either is left at their mean.
    """
    usable = (first > 0) & (second > 0)  # false for NaN
    estimate: Table = (first + second) / 2
    if not usable.any():
        return estimate, 0.0
    logs = [np.log(np.where(usable, table, 1.0)) for table in (first, second)]
    curves = [two_effects(table, usable) for table in logs]
    one, other = (table[usable] - curve[usable] for table, curve in zip(logs, curves, strict=True))
    spread = float(((one + other) ** 2).mean()) / 4
    kept = float(np.clip((one * other).mean() / spread, 0, 1)) if spread > 0 else 0.0
    estimate[usable] = np.exp((curves[0][usable] + curves[1][usable]) / 2 + kept * (one + other) / 2)
    return estimate, kept


def two_effects(table: Table, usable: NDArray[np.bool_]) -> Table:
    """The least-squares sum of a row's and a column's effect, fitted to the usable entries, at every entry."""
    rows, columns = table.shape
    row, column = np.nonzero(usable)
    design = np.zeros((len(row), rows + columns))
    design[np.arange(len(row)), row] = 1
    design[np.arange(len(row)), rows + column] = 1
    effects = np.linalg.lstsq(design, table[usable], rcond=None)[0]
    fitted: Table = effects[:rows, None] + effects[None, rows:]
    return fitted
