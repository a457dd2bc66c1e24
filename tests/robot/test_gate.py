"""Between a policy and a motor: by a clock that the test moves, and with the real thread where threads matter."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import ResourceError, UsageError
from edge_vla.robot import Declaration, Gate, NotFiniteError
from edge_vla.robot.units import Bounds, Lapse
from tests.robot.robots import LINE, line

STOPS = line(watchdog=Lapse("stop"))
FORWARD = [0.005, 1.0]


class Rig:
    """A gate, its clock, and what its motor and its stop were given."""

    def __init__(self, robot: Declaration = LINE, send: Callable[[np.ndarray], None] | None = None) -> None:
        self.now, self.sent, self.lapses = 0.0, list[list[float]](), list[str]()
        self.gate = Gate(
            robot,
            send or (lambda values: self.sent.append(values.tolist())),
            on_lapse=self.lapses.append,
            clock=lambda: self.now,
            watch=False,
        )

    def act(self, *values: float, after: float = 0.1, **options: Any) -> bool:
        self.now += after
        return self.gate.act(values or FORWARD, **options) is not None

    def wait(self, seconds: float) -> None:
        """As the thread does: tick when something is due."""
        end = self.now + seconds
        while (due := self.gate.tick()) is not None and self.now + due <= end:
            self.now += max(due, 1e-3)
        self.now = end


def test_actions_pass_in_time() -> None:
    rig = Rig()
    assert all(rig.act(0.005 * n, 1.0) for n in (1, 2, 2, 1))
    assert rig.sent == [[0.005, 1.0], [0.01, 1.0], [0.01, 1.0], [0.005, 1.0]]
    assert rig.gate.tick() == pytest.approx(0.3)
    assert rig.lapses == []


def test_a_missing_action_holds_on_the_way_to_rest_and_once() -> None:
    rig = Rig()
    for n in range(1, 6):
        rig.act(0.009 * n, 1.0)
    speeds = [values[0] for values in rig.sent]
    rig.wait(10.0)
    held = [values[0] for values in rig.sent[5:]]
    assert 3 <= len(held) <= 12
    assert held[-1] == 0.0
    assert np.abs(np.diff([0.0, 0.0, *speeds, *held], 2)).max() <= 0.01
    assert len(rig.lapses) == 1
    assert "no fresh action" in rig.lapses[0]
    assert not rig.act()
    assert rig.gate.state.latched
    assert rig.gate.state.refused == 1


def test_a_missing_action_stops_at_once_where_declared() -> None:
    rig = Rig(STOPS)
    for n in range(1, 6):
        rig.act(0.009 * n, 1.0)
    rig.wait(10.0)
    assert rig.sent[5:] == [[0.0, 1.0]]
    assert len(rig.lapses) == 1


def test_an_absolute_robot_stops_where_it_was_sent() -> None:
    limits = Bounds(low=(0.0,), high=(1.0,))
    rig = Rig(line(actions="absolute", limits=limits, watchdog=Lapse("stop")))
    with pytest.raises(UsageError, match="call start"):
        rig.act(0.5, 1.0)
    rig.gate.reset([0.4, 1.0])
    rig.act(0.5, 0.0)
    rig.wait(1.0)
    assert rig.sent == [[0.5, 0.0], [0.5, 0.0]]


def test_a_stale_action_is_not_sent() -> None:
    rig = Rig(STOPS)
    rig.act(valid_until=1.0)
    assert not rig.act(0.009, 0.0, valid_until=0.15)
    assert rig.sent == [[0.005, 1.0], [0.0, 1.0]]
    assert "after it was valid" in rig.lapses[0]


def test_a_nan_stops_and_latches_whatever_was_declared() -> None:
    rig = Rig(line(watchdog=Lapse("hold", recover=1)))
    rig.act()
    with pytest.raises(NotFiniteError):
        rig.act(math.nan, 1.0)
    assert rig.sent[1:] == [[0.0, 1.0]]
    assert not any(rig.act() for _ in range(5))
    assert len(rig.lapses) == 1
    rig.gate.reset()
    assert rig.act()


def test_it_recovers_after_fresh_ones_as_declared() -> None:
    rig = Rig(line(watchdog=Lapse("hold", recover=3)))
    rig.act()
    rig.wait(1.0)
    assert [rig.act() for _ in range(4)] == [False, False, True, True]
    assert rig.gate.state.reason == ""


def test_what_is_no_action_of_this_robot_feeds_no_watchdog() -> None:
    rig = Rig()
    rig.act()
    for _ in range(3):
        with pytest.raises(UsageError, match="takes 2 numbers"):
            rig.act(0.0)
    rig.now += 0.01
    rig.gate.tick()
    assert len(rig.lapses) == 1


def test_a_motor_that_refuses_latches_the_gate() -> None:
    def broken(values: np.ndarray) -> None:
        raise OSError("no such port")

    rig = Rig(send=broken)
    with pytest.raises(ResourceError, match="no such port"):
        rig.act()
    assert "send failed" in rig.lapses[0]
    assert not rig.act()


def test_closing_stops_and_nothing_passes_afterwards() -> None:
    rig = Rig()
    with rig.gate:
        rig.act()
    assert rig.sent[-1] == [0.0, 1.0]
    assert not rig.act()
    with pytest.raises(UsageError, match="closed"):
        rig.gate.reset()
    assert len(rig.sent) == 2


@given(
    st.lists(st.tuples(st.floats(), st.integers(0, 7), st.booleans()), max_size=30),
    st.integers(0, 3),
    st.sampled_from(["hold", "stop"]),
)
def test_whatever_comes_the_motor_gets_nothing_beyond_its_bounds(
    calls: list[tuple[float, int, bool]], recover: int, on_stale: Any
) -> None:
    rig = Rig(line(watchdog=Lapse(on_stale, recover=recover)))
    for value, tenths, fresh in calls:
        rig.wait(tenths / 10)
        try:
            rig.act(value, value, after=0.0, valid_until=math.inf if fresh else -math.inf)
        except NotFiniteError:
            assert rig.gate.state.latched
    rig.wait(5.0)
    if rig.sent:
        sent = np.array(rig.sent)
        assert np.isfinite(sent).all()
        assert np.abs(sent[:, 0]).max() <= 0.1
        assert ((sent[:, 1] >= 0) & (sent[:, 1] <= 1)).all()
        if rig.gate.state.watch == "lapsed":
            assert sent[-1, 0] == 0.0
        if on_stale == "hold" and not rig.gate.state.counters.stops:
            assert np.abs(np.diff([0.0, *sent[:, 0]])).max() <= 0.02


def test_the_thread_sees_a_missing_action() -> None:
    lapsed, sent = threading.Event(), list[list[float]]()
    robot = line(period_ms=10.0, watchdog=Lapse("stop", after_ms=30.0))
    with Gate(robot, lambda values: sent.append(values.tolist()), on_lapse=lambda reason: lapsed.set()) as gate:
        for _ in range(5):
            assert gate.act(FORWARD) is not None or lapsed.is_set()
        assert lapsed.wait(10.0)
        assert gate.act(FORWARD) is None
        assert sent[-1] == [0.0, 1.0]


def test_a_motor_that_hangs_is_reported_by_the_thread() -> None:
    hanging, lapses = threading.Event(), list[str]()
    reported = threading.Event()

    def hang(values: np.ndarray) -> None:
        hanging.wait(20.0)

    def on_lapse(reason: str) -> None:
        lapses.append(reason)
        reported.set()

    gate = Gate(line(period_ms=10.0, watchdog=Lapse("stop", after_ms=30.0)), hang, on_lapse=on_lapse)
    caller = threading.Thread(target=lambda: gate.act(FORWARD), daemon=True)
    caller.start()
    time.sleep(0.01)
    gate._wake.set()
    try:
        assert reported.wait(10.0)
        assert "send has not returned" in lapses[0]
    finally:
        hanging.set()
        caller.join(10.0)
        gate.close()


def test_a_callback_that_raises_does_not_end_the_watch() -> None:
    calls = threading.Semaphore(0)

    def raising(reason: str) -> None:
        calls.release()
        raise RuntimeError("mine")

    robot = line(period_ms=10.0, watchdog=Lapse("hold", after_ms=20.0))
    with Gate(robot, lambda values: None, on_lapse=raising) as gate:
        for _ in range(2):
            gate.reset()
            gate.act(FORWARD)
            assert calls.acquire(timeout=10.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_wants_the_program_to_end_does_not_end_the_watch() -> None:
    """As rich does where nobody reads the screen any more."""
    calls = threading.Semaphore(0)

    def leaving(reason: str) -> None:
        calls.release()
        raise SystemExit(1)

    robot = line(period_ms=10.0, watchdog=Lapse("hold", after_ms=20.0))
    with Gate(robot, lambda values: None, on_lapse=leaving) as gate:
        for _ in range(2):
            gate.reset()
            gate.act(FORWARD)
            assert calls.acquire(timeout=10.0)
