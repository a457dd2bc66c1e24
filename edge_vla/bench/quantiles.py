"""Percentiles that a sample is large enough for.

A percentile is reported as MLPerf's early stopping allows (mlcommons/inference_policies, inference_rules.adoc, "early
stopping"): with tolerance 0 and confidence 0.99, so the true percentile lies above the reported one at most once in a
hundred runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

CONFIDENCE: Final = 0.99


def percentile(samples: Sequence[float], share: float) -> float | None:
    """Upper 99 % confidence bound of the `share` quantile (0.9 is p90), one of the samples; None for too few."""
    rank = slowest_rank(len(samples), share)
    return float(np.sort(samples)[-rank]) if rank else None


def slowest_rank(queries: int, share: float) -> int:
    """t, where the t-th slowest of `queries` is to be reported; 0 where there is none.

    The largest t for which at most t slow queries have a probability of 1 - CONFIDENCE or less.
    """
    slow = stats.binom(queries, 1 - share)
    rank = int(slow.ppf(1 - CONFIDENCE))
    return rank if slow.cdf(rank) <= 1 - CONFIDENCE else max(0, rank - 1)


def queries_needed(share: float) -> int:
    """Fewest queries with a second slow one among them at confidence: enough for this quantile."""
    return 2 + int(stats.nbinom.ppf(CONFIDENCE, 2, 1 - share))
