"""When actions are stale or missing, by a clock that the test moves; the oracle is a list of the times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.robot import Watchdog
from edge_vla.robot.units import Lapse


def test_it_waits_for_the_first_action() -> None:
    dog = Watchdog(Lapse("hold"), 0.3)
    assert not dog.check(1e9)
    assert dog.left(1e9) is None
    assert dog.feed(1e9)
    assert dog.left(1e9 + 0.1) == pytest.approx(0.2)


def test_a_missing_action_is_said_once_and_latched() -> None:
    dog = Watchdog(Lapse("hold"), 0.3)
    dog.feed(0.0)
    assert not dog.check(0.3)
    assert dog.check(0.31)
    assert not dog.check(0.32)
    assert (dog.state, dog.latched, dog.lapses) == ("lapsed", True, 1)
    assert "310 ms" in dog.reason
    assert not any(dog.feed(0.4 + t / 10) for t in range(100))
    dog.reset()
    assert dog.feed(20.0)


@pytest.mark.parametrize("valid_until", [0.9, 1.0, math.nan, -math.inf])
def test_a_stale_action_lapses_at_once(valid_until: float) -> None:
    dog = Watchdog(Lapse("hold"), 0.3)
    dog.feed(0.8, 0.9)
    assert not dog.feed(1.0, valid_until)
    assert dog.state == "lapsed"


def test_it_recovers_after_fresh_ones_in_a_row() -> None:
    dog = Watchdog(Lapse("hold", recover=3), 0.3)
    dog.feed(0.0)
    assert dog.check(1.0)
    assert [dog.feed(1.0), dog.feed(1.1), dog.feed(1.2, 1.1), dog.feed(1.3), dog.feed(1.4)] == [False] * 5
    assert not dog.feed(1.8)  # too late after 1.4: the row begins again
    assert [dog.feed(1.9), dog.feed(2.0)] == [False, True]
    assert (dog.state, dog.reason, dog.lapses) == ("running", "", 1)


def test_what_is_latched_stays_whatever_was_declared() -> None:
    dog = Watchdog(Lapse("hold", recover=1), 0.3)
    dog.feed(0.0)
    dog.lapse("an action was not finite", latch=True)
    assert not any(dog.feed(t / 10) for t in range(100))
    assert dog.reason == "an action was not finite"


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40), st.integers(0, 4))
def test_an_action_passes_only_by_the_rule(gaps: list[tuple[int, bool]], recover: int) -> None:
    """Times in tenths of a second, three allowed; `check` is never called in between, as by a thread that hangs."""
    dog, now, fresh_times = Watchdog(Lapse("stop", recover=recover), 0.35), 0, list[int]()
    lapsed = False
    for gap, fresh in gaps:
        now += gap
        passed = dog.feed(now / 10, math.inf if fresh else -math.inf)
        if not fresh:
            assert not passed
            lapsed, fresh_times = True, []
            continue
        if fresh_times and now - fresh_times[-1] > 3:
            lapsed, fresh_times = True, []
        fresh_times.append(now)
        if lapsed and recover and len(fresh_times) >= recover:
            lapsed = False
        assert passed == (not lapsed)
