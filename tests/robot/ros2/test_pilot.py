"""The pilot by itself: what it owes to the robot while the policy is still at work."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_vla.robot.asker import Answer
from edge_vla.robot.ros2.freshness import AgeRule
from edge_vla.robot.ros2.messages import Origin, Stamp
from edge_vla.robot.ros2.pilot import Pilot
from edge_vla.robot.units import Declaration, Floats
from tests.robot.ros2.example import INSTRUCTION, ROBOT, pictures


class Thoughtful:
    """A policy whose second answer waits until it is let go."""

    name, statistics = "thoughtful", None

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Semaphore(0), threading.Event()
        self._first = True

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Answer:
        self.asked.release()
        if not self._first:
            assert self.may_answer.wait(10.0)
        self._first = False
        return Answer(np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]))

    def close(self) -> None:
        """There is nothing to close."""


def test_an_answer_that_comes_on_the_way_to_rest_does_not_move_the_robot_again(tmp_path: Path) -> None:
    """Its declaration recovers at the first fresh action, and an answer under way is fresh."""
    file = tmp_path / "arm.toml"
    limits = "[limits]\nstep = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]\njerk = [0.01, 0.01, 0.01, 0.01, 0.01, 0.01]\n"
    file.write_text(ROBOT.replace("[limits]\n", limits), encoding="utf-8")
    source, sent, came = Thoughtful(), list[Origin](), threading.Event()

    def publish(values: Floats, origin: Origin, age_s: float) -> None:
        sent.append(origin)
        came.set()

    pilot = Pilot(
        source,
        Declaration.read(file),
        AgeRule(5.0),
        publish,
        time.time_ns,
        instruction=INSTRUCTION,
        on_fatal=lambda error: None,
    )
    pilot.start()
    images = pictures(2)
    for image in images:
        pilot.offer(Origin(Stamp.of(time.time_ns()), "camera"), time.monotonic(), image.copy)
        assert source.asked.acquire(timeout=10.0)
    assert came.wait(10.0)
    stopping = threading.Thread(target=pilot.stop, args=("the test is over", 10.0))
    stopping.start()
    until = time.monotonic() + 10.0
    while not sent[-1].rest and time.monotonic() < until:
        time.sleep(0.001)
    source.may_answer.set()
    stopping.join(20.0)
    assert not stopping.is_alive()
    assert [origin.rest for origin in sent] == [False] + [True] * (len(sent) - 1)
    assert len(sent) > 2
