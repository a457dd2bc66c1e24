"""Intervals, tests and sample sizes, in plain numpy.

Frames of one episode resemble each other, so whole episodes are resampled; where two policies met the same cases, the
differences are. Knows nothing of policies: callers say what a number is a mean of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NORMAL: Final = NormalDist()
LEVEL: Final = 0.95
RESAMPLES: Final = 10_000
SEED: Final = 0
CELLS: Final = 2_000_000  # drawn at a time, which bounds memory
ONE_SIDED: Final = 1.645  # 5 % point of the normal distribution, rounded up as tables of sample sizes have it


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided interval. `deff`: variance over that of as many independent frames; `n`: frames."""

    mean: float
    low: float
    high: float
    deff: float = 1.0
    n: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a share of independent trials (Wilson 1927); (0, 1) when nothing was tried."""
    if not trials:
        return 0.0, 1.0
    z = _z(level)
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / trials + weight / (4 * trials)) / (1 + weight)
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return low, 1.0 if successes >= trials else min(1.0, middle + half)


class Clustered:
    """Means of columns of values, one row a frame, with intervals from resampling whole episodes.

    Percentile bootstrap, its tails widened for few episodes as Student's t is (Hesterberg 2015, "expanded"). With
    `trials` a column's values are shares of that many yes-or-no trials; its interval then also holds Wilson's at the
    effective sample size (Korn and Graubard 1998), because resampling cannot see a failure that did not happen. A
    single episode is taken frame by frame: the interval then speaks for that episode only.
    """

    def __init__(self, values: Floats, episodes: Sequence[str], trials: Sequence[int] | int = 0) -> None:
        """`values`: (frames,) or (frames, columns) float64. `trials`: per column, 0 where values are not shares."""
        columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        frames, width = columns.shape
        if not frames or len(episodes) != frames:
            raise ValueError(f"{frames} rows of values for {len(episodes)} episode names: expected one name a row")
        labels = np.asarray(episodes) if len(set(episodes)) > 1 else np.arange(frames)
        groups, index = np.unique(labels, return_inverse=True)
        counts: Floats = np.bincount(index).astype(np.float64)
        sums: Floats = np.stack([np.bincount(index, column).astype(np.float64) for column in columns.T], axis=1)
        self.frames, self.clusters = frames, len(groups)
        self.trials = [trials] * width if isinstance(trials, int) else list(trials)
        self.means: Floats = columns.mean(axis=0)
        self.constant: Bools = columns.min(axis=0) == columns.max(axis=0)
        # Variance of a ratio of cluster totals, by linearisation (Cochran 1977, 6.3), and of independent frames.
        residuals = sums - counts[:, None] * self.means
        correction = self.clusters / max(1, self.clusters - 1)
        self.variance: Floats = np.where(self.constant, 0.0, correction * (residuals**2).sum(axis=0) / frames**2)
        alone = columns.var(axis=0) * frames / max(1, frames - 1) / frames
        self.deff: Floats = np.where(self.constant, 1.0, self.variance / np.where(self.constant, 1.0, alone))
        self._resampled = _resampled_means(sums, counts)

    def interval(self, column: int = 0, level: float = LEVEL) -> Interval:
        mean, tail = float(self.means[column]), (1 - level) / 2
        widened = self._widened(tail)
        low, high = (float(end) for end in np.quantile(self._resampled[:, column], [widened, 1 - widened]))
        if self.trials[column]:
            effective = self.effective(column, mean * (1 - mean), self.frames * self.trials[column], tail)
            score = wilson(mean * effective, effective, level)
            low, high = min(low, score[0]), max(high, score[1])
        return Interval(mean, min(low, mean), max(high, mean), float(self.deff[column]), self.frames)

    def intervals(self) -> list[Interval]:
        return [self.interval(column) for column in range(len(self.means))]

    def holm_lows(self, columns: Sequence[int], level: float = LEVEL) -> list[float]:
        """Lower bounds such that all of them lie above a gate when Holm's test rejects for every column.

        The clearest column is read at a tail divided by the number of columns, the next by one less, and so on.
        """
        lows = [self.interval(column, level).low for column in columns]
        result = list(lows)
        for rank, place in enumerate(sorted(range(len(columns)), key=lambda place: -lows[place])):
            strict = 1 - (1 - level) / (len(columns) - rank)
            result[place] = self.interval(columns[place], strict).low
        return result

    def _widened(self, tail: float) -> float:
        if self.clusters < 2:
            return tail
        correction = math.sqrt(self.clusters / (self.clusters - 1))
        return NORMAL.cdf(-correction * student(tail, self.clusters - 1))

    def effective(self, column: int, of_one: float, trials: int, tail: float) -> float:
        """Independent trials, each of variance `of_one`, that would tell as much. Never more than were made."""
        if self.variance[column] <= 0:
            return trials
        fewer = (student(tail, self.frames - 1) / student(tail, self.clusters - 1)) ** 2
        return float(min(trials, of_one / self.variance[column] * fewer))


def cluster_interval(values: Floats, episodes: Sequence[str], trials: int = 0, level: float = LEVEL) -> Interval:
    """Mean of (frames,) values with the interval of `Clustered`."""
    return Clustered(values, episodes, trials).interval(level=level)


def paired_cluster_difference(
    first: NDArray[Any], second: NDArray[Any], episodes: Sequence[str], level: float = LEVEL
) -> Interval:
    """Mean of second minus first over (frames,) or (frames, dims) of the same frames, episodes resampled.

    For booleans the interval also holds Tango's at the effective number of pairs: see `Clustered`.
    """
    frames = len(first)
    ours, theirs = first.reshape(frames, -1), second.reshape(frames, -1)
    clustered = Clustered((theirs.astype(np.float64) - ours.astype(np.float64)).mean(axis=1), episodes)
    found = clustered.interval(level=level)
    if ours.dtype != np.bool_:
        return found
    only_first, only_second, pairs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), ours.size
    of_one = (only_first + only_second) / pairs - found.mean**2
    part = clustered.effective(0, of_one, pairs, (1 - level) / 2) / pairs
    score = _tango(only_first * part, only_second * part, pairs * part, level)
    return Interval(found.mean, min(found.low, score[0]), max(found.high, score[1]), found.deff, found.n)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant pairs as throws of a fair coin."""
    thrown = only_first + only_second
    ways = tail = 1
    for k in range(min(only_first, only_second)):
        ways = ways * (thrown - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << thrown))


def paired_difference(
    both: int, only_reference: int, only_candidate: int, neither: int, level: float = LEVEL
) -> Interval:
    """Share of the candidate minus share of the reference over independent pairs, with Tango's score interval.

    Tango, Statistics in Medicine 17 (1998) 891-908. Its 90 % lower end is the score test of non-inferiority at 5 %.
    """
    pairs = both + only_reference + only_candidate + neither
    if not pairs:
        return Interval(0.0, -1.0, 1.0)
    low, high = _tango(only_reference, only_candidate, pairs, level)
    return Interval((only_candidate - only_reference) / pairs, low, high, n=pairs)


def non_inferiority(difference: Interval, margin: float) -> bool:
    """Whether a difference, read from its 90 % interval (one-sided 5 %), rules out a loss of `margin` or more."""
    return difference.low > -margin


def episodes_needed(discordance: float, margin: float, power: float = 0.8) -> int:
    """Pairs for which `non_inferiority` passes with this power when the policies are in truth equally good.

    `discordance`: share of pairs that only one policy masters. Normal approximation; Nam, Biometrics 53 (1997).
    """
    return math.ceil((ONE_SIDED + NORMAL.inv_cdf(power)) ** 2 * discordance / margin**2)


@lru_cache
def student(tail: float, freedom: int) -> float:
    """Upper point of Student's t, from the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    if freedom > CELLS // 100:
        return NORMAL.inv_cdf(1 - tail)
    low, high = 0.0, 1.0
    while _student_tail(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _student_tail(t: float, freedom: int) -> float:
    angle = math.atan2(t, math.sqrt(freedom))
    odd = freedom % 2
    k = np.arange(1, freedom // 2)
    terms = np.cumprod(np.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd))
    series = 1.0 + float(terms.sum())
    if not odd:
        return (1 - math.sin(angle) * series) / 2
    if freedom == 1:
        series = 0.0
    return (1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * series)) / 2


def _resampled_means(sums: Floats, counts: Floats) -> Floats:
    """(clusters, columns) sums and (clusters,) counts -> (RESAMPLES, columns) means of clusters drawn with return."""
    clusters, generator = len(counts), np.random.default_rng(SEED)
    table = np.column_stack([sums, counts])
    rows = max(1, CELLS // clusters)
    parts = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = generator.integers(0, clusters, (size, clusters)) + clusters * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        totals = times @ table
        parts.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(parts)


def _tango(only_first: float, only_second: float, pairs: float, level: float) -> tuple[float, float]:
    """Where the score statistic of second minus first passes the level, by bisection: it falls as `delta` grows."""
    estimate, z = (only_second - only_first) / pairs, _z(level)

    def score(delta: float) -> float:
        linear = -only_second - only_first + (2 * pairs - only_second + only_first) * delta
        root = math.sqrt(max(0.0, linear**2 + 8 * pairs * only_first * delta * (1 - delta)))
        variance = pairs * ((root - linear) / (2 * pairs) + delta * (1 - delta))
        distance = only_second - only_first - pairs * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def crossing(low: float, high: float, at: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > at else (low, middle)
        return (low + high) / 2

    return (
        -1.0 if estimate <= -1 else crossing(-1.0, estimate, z),
        1.0 if estimate >= 1 else crossing(estimate, 1.0, -z),
    )


def _z(level: float) -> float:
    return NORMAL.inv_cdf((1 + level) / 2)
