"""Percentiles that a sample is large enough for, and the ratio of two medians measured in turn.

A percentile is reported as MLPerf's early stopping allows (mlcommons/inference_policies, inference_rules.adoc, "early
stopping"): with tolerance 0 and confidence 0.99, so the true percentile lies above the reported one at most once in a
hundred runs. A sample too small for that is refused, with the number of queries that would be enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from edge_vla.bench.result.interval import Interval
from edge_vla.bench.statistics import cluster_interval

CONFIDENCE: Final = 0.99

Samples = Sequence[float]


@dataclass(frozen=True)
class Refusal:
    """Why a percentile is not reported."""

    queries: int
    needed: int

    def __str__(self) -> str:
        return f"n/a (n={self.queries} < {self.needed})"


def percentile(samples: Samples, share: float) -> float | Refusal:
    """Upper 99 % confidence bound of the `share` quantile (0.9 is p90), one of the samples; or why there is none."""
    rank = slowest_rank(len(samples), share)
    return float(np.sort(samples)[-rank]) if rank else Refusal(len(samples), queries_needed(share))


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


def ratio_of_medians(blocks: Sequence[tuple[Samples, Samples]]) -> Interval:
    """First over second: geometric mean over blocks of the ratio of medians, 95 % interval from resampled blocks.

    A block holds the times of both systems measured in turn (ABBA), so what drifts between blocks cancels in its ratio.
    `n` is the number of blocks. Raises ValueError for fewer than two, which cannot tell how much blocks differ.
    """
    if len(blocks) < 2:
        raise ValueError(f"{len(blocks)} block(s): a ratio needs two or more to have an interval")
    logs = np.array([math.log(float(np.median(first)) / float(np.median(second))) for first, second in blocks])
    found = cluster_interval(logs, [str(block) for block in range(len(blocks))])
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.deff, found.n)
