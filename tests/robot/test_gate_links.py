"""A gate before a link that can be cut, and whose robot rests by itself; and lapses that the loop knows of first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.robot import Gate
from edge_vla.robot.faces import Kind, LinkError
from edge_vla.robot.units import Declaration, Lapse, Workspace
from tests.robot.robots import line

BOXED = line(
    workspace=Workspace((-0.05,), (0.05,), "start", "base"),
    watchdog=Lapse("hold", recover=1),
)


class Robot:
    """Where a robot is that takes deltas, behind a link that fails when a test says so; and what it was sent."""

    def __init__(self, declared: Declaration = BOXED) -> None:
        self.now, self.position, self.fails = 0.0, 0.0, False
        self.taken: bool | None = False
        self.kinds, self.lapses = list[Kind](), list[str]()
        self.gate = Gate(
            declared,
            self.send,
            on_lapse=self.lapses.append,
            clock=lambda: self.now,
            watch=False,
        )

    def send(self, values: np.ndarray) -> None:
        self.kinds.append(self.gate.sending)
        if self.fails:
            if self.taken is None:
                self.position += float(values[0])  # it had arrived; its answer had not
            raise LinkError("cut", "no link", taken=False if self.taken is False else None)
        self.position += float(values[0])

    def act(self, value: float, jaw: float = 1.0, after: float = 0.1) -> bool:
        self.now += after
        try:
            return self.gate.act([value, jaw]) is not None
        except LinkError:
            return False


def test_a_link_that_is_cut_holds_and_goes_on_as_declared() -> None:
    robot = Robot()
    assert robot.act(0.005)
    robot.fails = True
    assert not robot.act(0.01)
    assert robot.gate.state.watch == "lapsed"
    assert not robot.gate.state.latched
    assert robot.lapses == ["no link"]
    assert robot.gate.resting
    robot.fails = False
    assert robot.act(0.005)
    assert robot.gate.state.reason == ""
    assert robot.kinds == ["action"] * 3


def test_without_recovery_only_a_reset_ends_it() -> None:
    robot = Robot(line(watchdog=Lapse("hold")))
    robot.act(0.005)
    robot.fails = True
    robot.act(0.005)
    robot.fails = False
    assert not robot.act(0.005)
    assert robot.gate.state.latched
    robot.gate.reset()
    assert robot.act(0.005)


def test_an_action_that_was_surely_not_taken_moves_neither_position_nor_gripper() -> None:
    robot = Robot()
    robot.act(0.005, 1.0)
    robot.fails = True
    robot.act(0.01, 0.0)
    limiter = robot.gate.limiter
    assert limiter._states[0].position == pytest.approx(0.005)
    assert limiter._jaws[1].value == 1.0
    robot.fails = False
    assert robot.act(0.0, 1.0)


@given(st.lists(st.tuples(st.floats(-0.02, 0.02), st.booleans()), max_size=40))
def test_the_robot_stays_in_its_box_however_often_the_link_is_cut(moves: list[tuple[float, bool]]) -> None:
    robot = Robot()
    for value, fails in moves:
        robot.fails = fails
        robot.act(value)
        assert -0.05 - 1e-9 <= robot.position <= 0.05 + 1e-9
        assert robot.gate.limiter._states[0].position == pytest.approx(robot.position, abs=1e-12)


def test_a_lapse_that_the_loop_knows_of_begins_at_once() -> None:
    robot = Robot(line(watchdog=Lapse("hold", recover=2)))
    robot.gate.lapse("the camera is black")
    assert robot.gate.state.watch == "waiting"
    assert robot.kinds == []
    for value in (0.005, 0.01, 0.015):
        robot.act(value)
    robot.gate.lapse("the camera is black")
    assert robot.lapses == ["the camera is black"]
    assert robot.kinds[3:] == ["hold"]
    while (due := robot.gate.tick()) is not None:
        robot.now += due
    assert robot.gate.resting
    assert set(robot.kinds[3:]) == {"hold"}
    robot.gate.lapse("the camera is black")
    assert len(robot.lapses) == 1
    assert [robot.act(0.005), robot.act(0.005)] == [False, True]


def test_a_fault_between_two_fresh_actions_begins_their_count_anew() -> None:
    robot = Robot(line(watchdog=Lapse("stop", recover=2)))
    robot.act(0.005)
    robot.gate.lapse("frozen")
    assert robot.kinds == ["action", "stop"]
    assert not robot.act(0.005)
    robot.gate.lapse("frozen")
    assert [robot.act(0.005), robot.act(0.005)] == [False, True]


def test_a_lapse_at_the_end_latches_whatever_was_declared() -> None:
    robot = Robot(line(watchdog=Lapse("hold", recover=1)))
    robot.gate.lapse("the end", latch=True)
    assert not robot.act(0.005)
    assert robot.gate.state.latched
    robot.gate.close()
    robot.gate.lapse("after the end")
    assert robot.kinds == []  # nothing was ever sent, so nothing is stopped
