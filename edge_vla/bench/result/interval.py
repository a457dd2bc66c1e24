"""A mean and how sure it is: the one figure that all of agreement and closed loop is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided interval. `deff`: variance over that of as many independent frames; `n`: frames."""

    mean: float
    low: float
    high: float
    deff: float = 1.0
    n: int = 0
