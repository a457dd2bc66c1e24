"""Intervals for shares of independent trials. For correlated frames see `agreement.interval`."""

from __future__ import annotations

import math

Z = 1.959963984540054  # two-sided 95 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share; (0, 1) when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, Z * Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
