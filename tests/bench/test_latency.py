"""The rules of timing on a clock that only moves when it is set: nothing here waits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pytest

from edge_vla import typed_json
from edge_vla.bench import latency, schedule
from edge_vla.bench.latency import PROFILES, Profile
from edge_vla.bench.result import ColdStart, Latency, SpeedRatio, Stage, WarmUp
from edge_vla.bench.schedule import Clock, Record, Warmed, blocks
from edge_vla.bench.statistics import median_interval
from edge_vla.errors import UsageError


class Hands:
    """A clock's hands, in nanoseconds. Sleeping and working move them; a sleep oversleeps by `over` ns."""

    def __init__(self, over: int = 0) -> None:
        self.moment, self.over = 5_000, over
        self.clock = Clock(lambda: self.moment, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.moment += round(seconds * 1e9) + self.over

    def policy(self, work_ms: Callable[[int], float], attributed: float = 1.0) -> schedule.Query:
        turn = iter(range(1_000_000))

        def query(index: int) -> Mapping[str, float]:
            took = work_ms(next(turn))
            self.moment += round(took * 1e6)
            return {"vision": took * attributed / 4, "decode": took * attributed * 3 / 4, "total": took * attributed}

        return query


def records(times_ms: Sequence[float], stages: Mapping[str, float] | None = None) -> list[Record]:
    """Back-to-back queries that took these times."""
    ends = np.cumsum([round(value * 1e6) for value in times_ms]).tolist()
    return [
        Record(i, end - round(value * 1e6), end - round(value * 1e6), end, dict(stages or {}))
        for i, (end, value) in enumerate(zip(ends, times_ms, strict=True))
    ]


def test_back_to_back_schedules_each_query_at_the_last_answer() -> None:
    hands = Hands()
    made = schedule.back_to_back(hands.policy(lambda turn: 10 + turn), [4, 0, 4], hands.clock)
    assert [record.index for record in made] == [4, 0, 4]
    assert [record.latency_ms for record in made] == [10, 11, 12]
    assert [record.scheduled_ns for record in made] == [5_000, 10_005_000, 21_005_000]
    assert "total" not in made[0].stages


def test_paced_charges_a_query_for_waiting_behind_a_slow_one() -> None:
    """Coordinated omission: after one answer of 500 ms at 10 Hz, four more were due and wait."""
    hands = Hands()
    made = schedule.paced(hands.policy(lambda turn: 500 if turn == 2 else 20), range(8), 0.1, hands.clock)
    assert [round(record.latency_ms) for record in made] == [20, 20, 500, 420, 340, 260, 180, 100]
    assert [round(record.late_ms) for record in made] == [0, 0, 0, 400, 320, 240, 160, 80]
    got = latency.summary([made], "paced 10 Hz", period_s=0.1)
    assert got.deadline_ms == 100
    assert got.deadline_misses == 5
    assert got.stages[0].name == "late start"
    assert got.unattributed_ms == pytest.approx(0, abs=1e-9)
    assert got.sustained_hz == pytest.approx(10)


def test_paced_counts_oversleeping_as_latency() -> None:
    hands = Hands(over=300_000)
    made = schedule.paced(hands.policy(lambda turn: 20), range(3), 0.1, hands.clock)
    assert [record.latency_ms for record in made] == pytest.approx([20, 20.3, 20.3])


def test_a_policy_slower_than_its_schedule_is_warned_of() -> None:
    hands = Hands()
    made = schedule.paced(hands.policy(lambda turn: 300), range(20), 0.1, hands.clock)
    got = latency.summary([made], "paced 10 Hz", period_s=0.1)
    assert got.deadline_misses == 20
    assert any("slower than the pace" in line for line in latency.warnings(got))
    with pytest.raises(UsageError, match="positive"):
        schedule.paced(hands.policy(lambda turn: 1), range(2), 0, hands.clock)


def test_warm_up_waits_for_three_stable_windows_and_five_seconds() -> None:
    hands = Hands()
    # Three windows too slow by 10 % and more, then stable: the third stable window ends query 120.
    got = schedule.warm_up(hands.policy(lambda turn: 100 if turn >= 60 else 200 - turn), clock=hands.clock)
    assert (got.queries, got.stable, got.p50_ms) == (120, True, 100)
    quick = schedule.warm_up(hands.policy(lambda turn: 10), clock=hands.clock)
    assert quick.stable
    assert quick.seconds >= 5
    assert quick.queries == 500


def test_warm_up_gives_up_at_its_cap() -> None:
    hands = Hands()
    slow = schedule.warm_up(hands.policy(lambda turn: 16_000), max_s=30, clock=hands.clock)
    assert slow == Warmed(queries=2, seconds=32, stable=False, p50_ms=16_000)
    restless = schedule.warm_up(hands.policy(lambda turn: 10 * 1.1 ** (turn // 20)), max_s=60, clock=hands.clock)
    assert not restless.stable
    got = latency.summary([records([1.0])], "m", warmed=restless)
    assert got.warm_up == WarmUp(queries=restless.queries, seconds=restless.seconds, stable=False)
    assert any("warm-up" in line for line in latency.warnings(got))


@pytest.mark.parametrize(
    ("name", "action_ms", "queries"),
    [
        ("brief", 20, 8),
        ("brief", 16_000, 8),
        ("brief", 60_000, 8),
        ("quick", 20, 64),
        ("quick", 16_000, 18),
        ("default", 20, 3000),
        ("default", 200, 662),
        ("default", 16_000, 75),
        ("publish", 100, 6000),
    ],
)
def test_profiles_stop_short_for_slow_policies(name: str, action_ms: float, queries: int) -> None:
    assert PROFILES[name].count(action_ms) == queries


def test_a_profile_never_asks_for_more_than_it_wants() -> None:
    assert Profile(queries=3, seconds=0, max_seconds=1).count(1e6) == 3


@pytest.mark.parametrize(
    ("count", "refused"),
    [
        (8, {"p90", "p95", "p99", "p999"}),
        (63, {"p90", "p95", "p99", "p999"}),
        (64, {"p95", "p99", "p999"}),
        (130, {"p99", "p999"}),
        (661, {"p99", "p999"}),
        (662, {"p999"}),
        (6636, set()),
    ],
)
def test_percentiles_are_refused_where_the_sample_cannot_carry_them(count: int, refused: set[str]) -> None:
    got = latency.summary([records(np.linspace(10, 20, count).tolist())], "back to back")
    assert set(got.refused) == refused
    assert {name for name in ("p90", "p95", "p99", "p999") if getattr(got, f"{name}_ms") is None} == refused
    for name in refused:
        assert got.refused[name].startswith(f"n/a (n={count} < ")


def test_summary_of_a_known_sample() -> None:
    times = [float(value) for value in range(1, 101)]
    got = latency.summary([records(times, {"vision": 0.5})], "back to back", cold=ColdStart(ready_s=1.5, first_ms=9.0))
    assert got.p50_ms == 50.5
    assert got.p90_ms is not None
    assert 90 <= got.p90_ms <= 100
    assert got.max_ms == 100
    assert got.mean_ms == 50.5
    assert got.cov == pytest.approx(np.std(times, ddof=1) / 50.5)
    assert got.hz == pytest.approx(1e3 / 50.5)
    assert got.sustained_hz == pytest.approx(100 / 5.05)
    assert got.stages == [Stage(name="vision", p50_ms=0.5, share=50 / 5050)]
    assert got.unattributed_ms == 50
    assert any("no stage" in line for line in latency.warnings(got))
    low, high = got.p50_interval_ms
    assert 38 < low < 45
    assert 56 < high < 63
    assert got.deadline_misses is None
    assert typed_json.from_json(Latency, json.loads(json.dumps(asdict(got), allow_nan=False))) == got


def test_nothing_measured_is_an_error_and_one_query_is_not() -> None:
    with pytest.raises(UsageError, match="no query"):
        latency.summary([[]], "back to back")
    assert latency.summary([records([4.0])], "back to back").p50_interval_ms == (4, 4)


def test_sustained_rate_leaves_out_the_time_between_blocks() -> None:
    later = [Record(r.index, r.scheduled_ns + 10**12, r.started_ns + 10**12, r.finished_ns + 10**12, {}) for r in
             records([10.0] * 5)]  # fmt: skip
    assert latency.summary([records([10.0] * 5), later], "back to back").sustained_hz == pytest.approx(100)


def test_the_median_s_interval_is_wider_when_whole_runs_differ() -> None:
    generator = np.random.default_rng(1)
    alike = [(10 + generator.normal(0, 0.1, 50)).tolist() for _ in range(4)]
    apart = [[value + shift for value in run] for run, shift in zip(alike, (0, 1, 2, 3), strict=True)]
    width = [high - low for low, high in map(median_interval, (alike, apart))]
    assert width[1] > 10 * width[0]


def test_blocks_go_there_and_back() -> None:
    assert blocks(["a", "b"], 2) == ["a", "b", "b", "a", "a", "b", "b", "a"]
    order = blocks(["a", "b", "c"], 3)
    # A constant drift, one unit a block, falls on all alike.
    mean = {name: np.mean([at for at, other in enumerate(order) if other == name]) for name in "abc"}
    assert len(set(mean.values())) == 1


def test_ratio_has_an_interval_over_blocks() -> None:
    got = latency.ratio([[10.0, 10, 10]] * 4, [[20.0, 20, 20]] * 4)
    assert (got.ratio, got.low, got.high, got.blocks) == pytest.approx((2, 2, 2, 4))
    noisy = latency.ratio([[10.0], [11], [10], [11]], [[10.0], [10], [11], [11]])
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < 1 < noisy.high
    assert latency.ratio([[10.0]], [[20.0]]) == SpeedRatio(ratio=2, low=None, high=None, blocks=1)
    with pytest.raises(UsageError, match="as many"):
        latency.ratio([[1.0]] * 2, [[1.0]] * 3)


def test_a_cache_between_queries_is_noticed() -> None:
    ratio = latency.repeat_ratio([records([8.0] * 9)], [records([10.0] * 9)])
    assert ratio == pytest.approx(0.8)
    cached, sound = (latency.summary([records([10.0])], "m", repeat_ratio=value) for value in (ratio, 0.97))
    assert ["cached" in warning for warning in latency.warnings(cached)] == [True]
    assert list(latency.warnings(sound)) == []


@pytest.mark.parametrize(("cached", "expected"), [(False, 1.0), (True, 0.5)])
def test_other_work_neither_looks_like_a_cache_nor_hides_one(cached: bool, expected: float) -> None:
    """Everything takes three times as long for as long as two turns and a half, whichever those are."""
    turns, length = 12, 8
    share = 0.5 if cached else 1.0
    for begin in range(turns * length):
        slow = range(begin, begin + 20)
        times = [3.0 if at in slow else 1.0 for at in range(turns * length)]
        blocks = [records([10 * time for time in times[at : at + length]]) for at in range(0, len(times), length)]
        pairs = [(blocks[at], blocks[at + 1])[:: 1 if at % 4 == 0 else -1] for at in range(0, turns, 2)]
        quick = [records([share * record.latency_ms for record in same]) for same, _ in pairs]
        assert latency.repeat_ratio(quick, [new for _, new in pairs]) == pytest.approx(expected)


def test_samples_keep_every_moment() -> None:
    runs = [records([1.0, 2.0], {"vision": 0.5}), records([3.0], {"decode": 0.25})]
    arrays = latency.samples(runs)
    assert arrays["run"].tolist() == [0, 0, 1]
    assert ((arrays["finished_ns"] - arrays["scheduled_ns"]) / 1e6).tolist() == [1, 2, 3]
    assert arrays["stage vision"][:2].tolist() == [0.5, 0.5]
    assert math.isnan(arrays["stage vision"][2])


def test_the_real_clock_counts_nanoseconds() -> None:
    made = schedule.paced(lambda index: {}, range(3), 0.002)
    assert made[2].scheduled_ns - made[0].scheduled_ns == 4_000_000
    assert all(record.late_ms >= 0 for record in made)
