"""Intervals, tests and sample sizes.

Frames of one episode resemble each other, so whole episodes are resampled; where two policies saw the same cases, their
differences are. `resampled` is the one bootstrap. Knows nothing of policies: callers know what a number is a mean of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edge_vla.bench.result import Interval

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NORMAL: Final = NormalDist()
LEVEL: Final = 0.95
RESAMPLES: Final = 10_000
SEED: Final = 0
CELLS: Final = 2_000_000  # drawn at a time, which bounds memory
ONE_SIDED: Final = 1.645  # 5 % point of the normal distribution, rounded up as tables of sample sizes have it


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a share of independent trials (Wilson 1927); (0, 1) without trials.

    As scipy's, but for effective numbers of trials, which need not be whole.
    """
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

    Percentile bootstrap, its tails widened for few episodes. With `trials` a column's values are shares of that many
    yes-or-no trials; its interval then also holds Wilson's at the effective sample size (Korn and Graubard 1998),
    because resampling cannot see a failure that did not happen. A single episode is taken frame by frame: the interval
    then holds for that episode only.
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
        self.resampled = np.concatenate([drawn @ sums / (drawn @ counts)[:, None] for drawn in resampled(len(groups))])

    def interval(self, column: int = 0, level: float = LEVEL) -> Interval:
        mean, tail = float(self.means[column]), (1 - level) / 2
        low, high = percentile_interval(self.resampled[:, column], self.clusters, level)
        if self.trials[column]:
            effective = self.effective(column, mean * (1 - mean), self.frames * self.trials[column], tail)
            score = wilson(mean * effective, effective, level)
            low, high = min(low, score[0]), max(high, score[1])
        return Interval(mean, min(low, mean), max(high, mean), float(self.deff[column]), self.frames)

    def intervals(self) -> list[Interval]:
        return [self.interval(column) for column in range(len(self.means))]

    def holm_lows(self, columns: Sequence[int], level: float = LEVEL) -> list[float]:
        """Lower bounds that all lie above a gate exactly when Holm's test rejects for every column.

        The highest bound is taken at a tail divided by the number of columns, the next by one less, and so on.
        """
        lows = [self.interval(column, level).low for column in columns]
        result = list(lows)
        for rank, place in enumerate(sorted(range(len(columns)), key=lambda place: -lows[place])):
            stricter = 1 - (1 - level) / (len(columns) - rank)
            result[place] = self.interval(columns[place], stricter).low
        return result

    def effective(self, column: int, of_one: float, trials: int, tail: float) -> float:
        """Number of independent trials of variance `of_one` with the same information; at most `trials`."""
        if self.variance[column] <= 0:
            return trials
        fewer = (stats.t.isf(tail, self.frames - 1) / stats.t.isf(tail, self.clusters - 1)) ** 2
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


def median_interval(runs: Sequence[Sequence[float]], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the median of all values. Of three runs or more whole runs are resampled, else single values."""
    values = np.concatenate([np.asarray(run, dtype=np.float64) for run in runs])
    cluster = np.repeat(np.arange(len(runs)), [len(run) for run in runs]) if len(runs) > 2 else np.arange(len(values))
    order, clusters = np.argsort(values), int(cluster.max()) + 1
    medians = []
    for drawn in resampled(clusters, cells=len(values)):
        below = drawn[:, cluster[order]].cumsum(axis=1)
        medians.append(values[order][(2 * below >= below[:, -1:]).argmax(axis=1)])
    return percentile_interval(np.concatenate(medians), clusters, level)


def resampled(clusters: int, cells: int = 0) -> Iterator[NDArray[np.int64]]:
    """How often each cluster is drawn, (draws, clusters) a chunk, RESAMPLES draws in all. `cells`: memory of a draw."""
    generator, size = np.random.default_rng(SEED), max(1, CELLS // max(clusters, cells))
    for start in range(0, RESAMPLES, size):
        draws = min(size, RESAMPLES - start)
        drawn = generator.integers(0, clusters, (draws, clusters)) + clusters * np.arange(draws)[:, None]
        yield np.bincount(drawn.ravel(), minlength=draws * clusters).reshape(draws, clusters)


def percentile_interval(values: Floats, clusters: int, level: float) -> tuple[float, float]:
    """Percentiles of resampled values; the tails are widened for few clusters as Student's t is (Hesterberg 2015)."""
    tail = (1 - level) / 2
    if clusters > 1:
        tail = NORMAL.cdf(-math.sqrt(clusters / (clusters - 1)) * float(stats.t.isf(tail, clusters - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant pairs as tosses of a fair coin."""
    tosses = only_first + only_second
    return float(stats.binomtest(only_first, tosses).pvalue) if tosses else 1.0


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
    """Whether a difference with its 90 % interval (one-sided 5 %) rules out a loss of `margin` or more."""
    return difference.low > -margin


def episodes_needed(discordance: float, margin: float, power: float = 0.8) -> int:
    """Pairs for which `non_inferiority` passes with this power when the policies are in truth equally good.

    `discordance`: share of pairs in which only one policy succeeds. Normal approximation; Nam, Biometrics 53 (1997).
    """
    return math.ceil((ONE_SIDED + NORMAL.inv_cdf(power)) ** 2 * discordance / margin**2)


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
