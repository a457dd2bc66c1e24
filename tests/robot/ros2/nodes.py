"""The node under test, in this process with the real tiny policy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter

from edge_vla.commands.ros2 import open_source
from edge_vla.robot.ros2.node import OpenSource, PolicyNode
from edge_vla.robot.ros2.parameters import Parameters
from edge_vla.robot.ros2.pilot import Answer, Source
from edge_vla.robot.units import Declaration

ROBOT = """
name = "arm-1"
actions = "delta"
period_ms = 50

[policy]
units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
gripper = { open = 1.0, closed = 0.0 }

[robot]
units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
gripper = { open = 1.0, closed = 0.0 }

[gripper]
at_rest = "open"

[limits]
low = [-1, -1, -1, -3, -3, -3]
high = [1, 1, 1, 3, 3, 3]

[camera]
max_age_ms = 5000

[watchdog]
on_stale = "hold"
after_ms = 8000
recover = 1
"""
# What a real robot would declare; the patient one above is for tests that a busy machine must not fail.
IMPATIENT = ROBOT.replace("max_age_ms = 5000", "max_age_ms = 400").replace("after_ms = 8000", "after_ms = 500")
JOINTS = ROBOT.replace('"m", "m", "m"', '"rad", "rad", "rad"').replace('"delta"', '"absolute"')
INSTRUCTION = "pick up the red block"


def pictures(count: int) -> NDArray[np.uint8]:
    """(count, 48, 64, 3): every one another."""
    return np.random.default_rng(16).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


class Slowed:
    """The real source, with something done first: time taken, or an error raised."""

    def __init__(self, source: Source, first: Callable[[], None]) -> None:
        self._source, self._first = source, first
        self.name, self.statistics = source.name, source.statistics

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Answer:
        self._first()
        return self._source.act(image, instruction, age_s)

    def close(self) -> None:
        self._source.close()


def slowed(first: Callable[[], None]) -> OpenSource:
    def opened(parameters: Parameters, robot: Declaration) -> Source:
        return Slowed(open_source(parameters, robot), first)

    return opened


@contextmanager
def running(opened: OpenSource = open_source, **parameters: Any) -> Iterator[PolicyNode]:
    """The node on an executor of its own, as `run.py` has it."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    node = PolicyNode(opened, parameter_overrides=overrides)
    executor, over = MultiThreadedExecutor(3), threading.Event()
    executor.add_node(node)

    def spin() -> None:
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        over.set()
        thread.join(10.0)
        node.end()
        executor.shutdown(1.0)
        node.destroy_node()
