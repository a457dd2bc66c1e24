"""What a robot of a load counts against its replies, and the figures made of it."""

from __future__ import annotations

import time

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serve.frames import Frame
from benchmarks.serve.load import Robot, jain
from benchmarks.serve.results import Spread
from benchmarks.serve.wire import Answer, answer

FRAME = Frame(np.zeros((16, 16, 3), np.uint8), "x", (1, 2))


def asked(*numbers: int) -> Robot:
    robot = Robot("arm", [FRAME], longest_ms=500.0)
    robot.sent = {number: (FRAME, time.perf_counter()) for number in numbers}
    return robot


def reply(number: int, **changes: object) -> Answer:
    fields: dict[str, object] = {"robot": "arm", "observation_id": number, "tokens": (1, 2), "action": np.zeros(2)}
    fields |= {"age_ms": 40.0, "valid_for_ms": 460.0, "infer_ms": 3.0}
    return Answer(**(fields | changes))  # type: ignore[arg-type]


def test_its_own_reply_is_counted_once() -> None:
    robot = asked(1)
    robot.hear(reply(1))
    assert (robot.crossed, robot.stale, len(robot.ages_ms), robot.sent) == (0, 0, 1, {})
    robot.hear(reply(1))
    assert robot.crossed == 1, "a second reply to one observation"


@pytest.mark.parametrize("change", [{"robot": "leg"}, {"tokens": (1, 3)}, {"observation_id": 7}])
def test_another_robots_reply_is_crossed(change: dict[str, object]) -> None:
    robot = asked(1)
    robot.hear(reply(1, **change))
    assert robot.crossed == 1


def test_an_older_image_after_a_newer_one_is_stale() -> None:
    robot = asked(1, 2)
    robot.hear(reply(2))
    robot.hear(reply(1))
    assert (robot.crossed, robot.stale) == (0, 1)


def test_an_action_that_may_be_used_for_too_long_is_stale() -> None:
    robot = asked(1)
    robot.hear(reply(1, age_ms=60.0))
    assert robot.stale == 1
    robot = asked(1)
    robot.hear(reply(1, age_ms=700.0, valid_for_ms=0.0))
    assert robot.stale == 0, "it says itself that it must not be started"


def test_a_refusal_is_neither() -> None:
    robot = asked(1)
    robot.hear(answer(msgpack.packb({"type": "error", "id": 1, "code": "E_SUPERSEDED"})))
    assert (robot.crossed, robot.stale, robot.refused) == (0, 0, {"E_SUPERSEDED": 1})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_jain_is_between_one_robots_share_and_one(rates: list[float]) -> None:
    assert 1 / len(rates) - 1e-9 <= jain(rates) <= 1 + 1e-9
    assert jain([rates[0]] * len(rates)) == pytest.approx(1)
    assert jain([rates[0]] + [0.0] * 3) == pytest.approx(0.25)


def test_a_spread_is_of_its_times() -> None:
    found = Spread.of([float(value) for value in range(1, 101)])
    assert (found.count, found.p5_ms, found.p50_ms, found.p99_ms) == (100, 6.0, 51.0, 100.0)
    assert Spread.of([]).count == 0
