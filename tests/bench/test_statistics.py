"""Statistics equal scipy's, statsmodels' and published tables; in simulation they hold what they promise."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from edge_vla.bench import latency, statistics
from edge_vla.bench.quantiles import percentile, queries_needed, slowest_rank
from edge_vla.bench.statistics import (
    Clustered,
    cluster_interval,
    episodes_needed,
    mcnemar,
    median_interval,
    non_inferiority,
    paired_cluster_difference,
    paired_difference,
    wilson,
)

MARGIN = 0.03


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 40), (382, 400)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes: int, trials: int, level: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_tried() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_wilson_covers_exactly_summed(share: float) -> None:
    """Coverage over all outcomes of 200 trials; a score interval swings about its level (Brown, Cai, DasGupta 2001)."""
    ends = [wilson(k, 200) for k in range(201)]
    inside = [low <= share <= high for low, high in ends]
    assert stats.binom.pmf(np.flatnonzero(inside), 200, share).sum() == pytest.approx(0.95, abs=0.02)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_fair_coin_summed_exactly(first: int, second: int) -> None:
    ways = sum(math.comb(first + second, heads) for heads in range(min(first, second) + 1))
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * ways / 2 ** (first + second)), rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_statsmodels_agrees() -> None:
    """Imported by the test alone: the package does without it."""
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    assert mcnemar(6, 16) == pytest.approx(tables.mcnemar([[59, 6], [16, 80]], exact=True).pvalue)
    assert wilson(33, 40) == pytest.approx(proportion.proportion_confint(33, 40, method="wilson"))


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Bentur et al. 2009, as worked in Fagerland, Lydersen and Laake 2014: 1 of 21 and 7 of 21 discordant.
        ((1, 7, 1, 12), -0.517, -0.026),
        # No pair discordant: where the score z^2 = n d / (1 - d) passes, as Wilson's for none of n.
        ((100, 0, 0, 0), -wilson(0, 100)[1], wilson(0, 100)[1]),
    ],
)
def test_paired_difference_as_published(table: tuple[int, int, int, int], low: float, high: float) -> None:
    found = paired_difference(*table)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)
    assert found.mean == pytest.approx((table[2] - table[1]) / sum(table))


def test_paired_difference_is_near_newcombe() -> None:
    """Cavo et al. 2012, 161 pairs: Newcombe's square-and-add interval is published as 0.0046 to 0.1186."""
    found = paired_difference(59, 6, 16, 80)
    assert (found.low, found.high) == pytest.approx((0.0046, 0.1186), abs=0.006)


@given(*[st.integers(0, 50)] * 4)
def test_laws_of_the_paired_difference(both: int, first: int, second: int, neither: int) -> None:
    found, mirrored = paired_difference(both, first, second, neither), paired_difference(both, second, first, neither)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    wider, pairs = paired_difference(both, first, second, neither, level=0.99), both + first + second + neither
    assert wider.low <= found.low + 1e-12
    assert found.high <= wider.high + 1e-12
    if first + second and pairs > abs(first - second):
        # The score at "no difference" is McNemar's without correction.
        excludes = (second - first) ** 2 / (first + second) > stats.norm.isf(0.025) ** 2
        assert excludes == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize(
    ("discordance", "needed"), [(0.05, (124, 344, 773)), (0.1, (248, 688, 1546)), (0.2, (495, 1375, 3092))]
)
def test_episodes_needed(discordance: float, needed: tuple[int, ...]) -> None:
    assert tuple(episodes_needed(discordance, margin) for margin in (0.05, 0.03, 0.02)) == needed


def passes(pairs: int, only_first: float, only_second: float) -> float:
    """Exact chance that non-inferiority is found, over all numbers of discordant pairs of these probabilities."""
    most = int(stats.binom.isf(1e-7, pairs, only_first + only_second))
    chance = 0.0
    for discordant in range(most + 1):
        found = [_passes(pairs, lost, discordant - lost) for lost in range(discordant + 1)]
        worse = stats.binom.pmf(np.arange(discordant + 1), discordant, only_first / (only_first + only_second))
        chance += stats.binom.pmf(discordant, pairs, only_first + only_second) * float(worse @ np.array(found))
    return chance


def _passes(pairs: int, lost: int, won: int) -> bool:
    """As `non_inferiority` on the 90 % interval, by the score at the margin alone, which is quicker."""
    if won - lost <= -MARGIN * pairs:
        return False
    linear = -won - lost - (2 * pairs - won + lost) * MARGIN
    root = math.sqrt(linear**2 - 8 * pairs * lost * MARGIN * (1 + MARGIN))
    variance = pairs * ((root - linear) / (2 * pairs) - MARGIN * (1 + MARGIN))
    return bool((won - lost + pairs * MARGIN) / math.sqrt(variance) > stats.norm.isf(0.05))


@pytest.mark.parametrize(("pairs", "discordance"), [(344, 0.05), (688, 0.1)])
def test_non_inferiority_errs_as_declared(pairs: int, discordance: float) -> None:
    """At the margin at most 5 % pass (a score test swings a little above), and at equality 80 % do."""
    for lost in range(0, 40, 3):
        for won in range(0, 40, 3):
            difference = paired_difference(pairs - lost - won, lost, won, 0, level=0.9)
            assert non_inferiority(difference, MARGIN) == _passes(pairs, lost, won)
    assert passes(pairs, (discordance + MARGIN) / 2, (discordance - MARGIN) / 2) <= 0.055
    assert passes(pairs, discordance / 2, discordance / 2) == pytest.approx(0.8, abs=0.05)


def clustered_shares(
    generator: np.random.Generator, episodes: int, frames: int, dims: int = 1
) -> tuple[NDArray[np.bool_], list[str], float]:
    """(frames, dims) successes with intra-episode correlation 1 / 6, episode names, true share."""
    chance = generator.beta(4, 1, episodes)
    drawn = generator.random((episodes, frames, dims)) < chance[:, None, None]
    return drawn.reshape(-1, dims), [str(i) for i in range(episodes) for _ in range(frames)], 0.8


@pytest.mark.parametrize(("episodes", "frames", "dims", "rounds"), [(60, 10, 1, 500), (12, 20, 3, 700)])
def test_cluster_interval_covers(
    episodes: int, frames: int, dims: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 %, never much less and, as it holds Wilson's interval too, a little more."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, covered, deff = np.random.default_rng(1), 0, []
    for _ in range(rounds):
        values, names, truth = clustered_shares(generator, episodes, frames, dims)
        found = cluster_interval(values.mean(axis=1), names, trials=dims)
        covered += found.low <= truth <= found.high
        deff.append(found.deff)
    assert 0.93 <= covered / rounds <= 0.99
    if dims == 1:  # 1 + (frames - 1) * correlation, Kish
        assert np.mean(deff) == pytest.approx(1 + (frames - 1) / 6, rel=0.1)


def test_cluster_interval_covers_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most runs see one failure or none and resampling alone would be sure of itself."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, names = np.random.default_rng(2), [str(i // 10) for i in range(200)]
    held = [
        found.low <= 0.99 <= found.high
        for found in (
            cluster_interval((generator.random(200) < 0.99).astype(float), names, trials=1) for _ in range(500)
        )
    ]
    assert np.mean(held) >= 0.93


def test_interval_of_means_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbounded values, few and unequal episodes: no more than a little below the level."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, sizes, held = np.random.default_rng(3), [5, 10, 15, 20, 25, 30, 10, 5, 20, 20], []
    names = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    for _ in range(600):
        values = np.repeat(generator.normal(0, 1, len(sizes)), sizes) + generator.normal(0, 1, len(names))
        found = cluster_interval(values, names)
        held.append(found.low <= 0 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.975


def test_paired_cluster_difference_covers_and_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairing takes out what both sides share: narrower than the two intervals would allow."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, held = np.random.default_rng(4), []
    for _ in range(500):
        first, names, _ = clustered_shares(generator, 40, 10, 2)
        second = first & (generator.random(first.shape) < 0.95)
        found = paired_cluster_difference(first, second, names)
        held.append(found.low <= -0.8 * 0.05 <= found.high)
    assert 0.93 <= np.mean(held) <= 0.99
    alone = cluster_interval(first.mean(axis=1), names, trials=2)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_laws_of_cluster_intervals(rows: list[tuple[int, bool]]) -> None:
    """The order of frames does not matter, the interval holds its mean, and a wider level is wider."""
    names, values = [str(episode) for episode, _ in rows], np.array([float(value) for _, value in rows])
    found = cluster_interval(values, names, trials=1)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    if len(set(names)) > 1:
        order = np.random.default_rng(0).permutation(len(rows))
        again = cluster_interval(values[order], [names[i] for i in order], trials=1)
        assert asdict(again) == pytest.approx(asdict(found))
    wider = cluster_interval(values, names, trials=1, level=0.99)
    assert wider.low <= found.low
    assert found.high <= wider.high


def test_no_failure_seen_is_not_certainty() -> None:
    found = cluster_interval(np.ones(64), [str(i // 8) for i in range(64)], trials=1)
    assert (found.low, found.high) == pytest.approx(wilson(64, 64))
    assert found.deff == 1


def test_independent_frames_are_wilson() -> None:
    values = np.arange(2000) % 10 > 0
    found = cluster_interval(values.astype(float), [str(i) for i in range(2000)], trials=1)
    assert found.deff == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx(wilson(1800, 2000), abs=1e-3)


def test_bootstrap_variance_is_the_linearised_one() -> None:
    values, names, _ = clustered_shares(np.random.default_rng(5), 80, 7)
    clustered = Clustered(values.astype(float), names)
    assert np.var(clustered.resampled[:, 0]) * 80 / 79 == pytest.approx(clustered.variance[0], rel=0.05)


def test_the_median_s_interval_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of single values, and of whole blocks that drift."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator, held = np.random.default_rng(10), []
    for drift in (0.0, 1.0) * 200:
        blocks = 1 if drift == 0 else 8
        runs = [generator.normal(generator.normal(0, drift), 1, 40).tolist() for _ in range(blocks)]
        low, high = median_interval(runs)
        held.append(low <= 0 <= high)
    assert 0.90 <= np.mean(held[::2]) <= 0.98
    assert 0.90 <= np.mean(held[1::2]) <= 0.99


def test_resampling_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, names, _ = clustered_shares(np.random.default_rng(6), 30, 4)
    whole = cluster_interval(values[:, 0].astype(float), names)
    monkeypatch.setattr(statistics, "CELLS", 30 * 999)
    assert cluster_interval(values[:, 0].astype(float), names) == whole


def test_rows_need_their_episodes() -> None:
    with pytest.raises(ValueError, match="2 rows of values for 1 episode names"):
        cluster_interval(np.ones(2), ["a"])


def test_holm_lows_pass_where_holms_test_rejects_all() -> None:
    """With means in hand and one-sided p values read from the same bounds: all lows above a gate, or one rejected."""
    generator = np.random.default_rng(7)
    values = (generator.random((300, 4)) < [0.99, 0.95, 0.92, 0.9]).astype(float)
    clustered = Clustered(values, [str(i // 5) for i in range(300)], trials=1)
    lows, plain = clustered.holm_lows(range(4)), [one.low for one in clustered.intervals()]
    clearest, weakest = int(np.argmax(plain)), int(np.argmin(plain))
    assert lows[weakest] == plain[weakest]
    assert lows[clearest] == clustered.interval(clearest, 1 - 0.05 / 4).low < plain[clearest]
    assert all(stricter <= low for stricter, low in zip(lows, plain, strict=True))


@pytest.mark.parametrize(("share", "needed"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_queries_needed_are_mlperfs(share: float, needed: int) -> None:
    assert queries_needed(share) == needed
    assert percentile([1.0] * (needed - 1), share) is None
    assert percentile([1.0] * needed, share) == 1.0


@pytest.mark.parametrize(
    ("queries", "ranks"), [(200, (83, 10, 3, 0, 0)), (1000, (462, 78, 34, 2, 0)), (6000, (2909, 546, 260, 42, 0))]
)
def test_reported_ranks_are_mlperfs(queries: int, ranks: tuple[int, ...]) -> None:
    shares = (0.5, 0.9, 0.95, 0.99, 0.999)
    assert tuple(slowest_rank(queries, share) for share in shares) == ranks
    for share, rank in zip(shares, ranks, strict=True):
        assert stats.binom.cdf(rank + 1, queries, 1 - share) > 0.01
        assert not rank or stats.binom.cdf(rank, queries, 1 - share) <= 0.01


def test_rank_of_a_million_queries() -> None:
    rank = slowest_rank(1_000_000, 0.5)
    assert stats.binom.cdf(rank, 1_000_000, 0.5) <= 0.01 < stats.binom.cdf(rank + 1, 1_000_000, 0.5)


def test_the_true_percentile_is_rarely_above_the_reported() -> None:
    times = np.sort(np.random.default_rng(8).exponential(size=(20_000, 200)), axis=1)
    reported = times[:, -slowest_rank(200, 0.9)]
    assert np.mean(reported < -math.log(0.1)) <= 0.012
    assert percentile(times[0], 0.9) == reported[0]


@pytest.mark.parametrize("blocks", [6, 12])
def test_ratio_of_medians_covers(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks drift by a tenth and the systems within them by a fiftieth: the ratio 2 is covered as often as stated."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator, held = np.random.default_rng(9), []
    for _ in range(300):
        drift, apart = generator.normal(1, 0.1, blocks), generator.normal(2, 0.04, blocks)
        theirs = [generator.normal(a * d, 0.1, 30).tolist() for d, a in zip(drift, apart, strict=True)]
        ours = [generator.normal(d, 0.05, 30).tolist() for d in drift]
        found = latency.ratio(ours, theirs)
        assert found.low is not None
        assert found.high is not None
        held.append(found.low <= 2 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.99
    assert found.blocks == blocks


def test_ratio_of_equal_systems_is_one() -> None:
    found = latency.ratio([[3.0, 4.0]] * 4, [[4.0, 3.0]] * 4)
    assert (found.ratio, found.low, found.high, found.blocks) == (1, 1, 1, 4)
