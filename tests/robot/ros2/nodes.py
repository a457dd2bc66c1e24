"""The node under test, in this process with the real tiny policy; and what its messages say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter

from edge_vla.commands.ros2_policies import open_source
from edge_vla.robot.asker import Answer
from edge_vla.robot.ros2.messages import Origin, origin_of
from edge_vla.robot.ros2.node import OpenSource, PolicyNode
from edge_vla.robot.ros2.parameters import Parameters
from edge_vla.robot.ros2.pilot import Source
from edge_vla.robot.units import Declaration


def origin(message: Any) -> Origin:
    """Of an action in form `array`."""
    return origin_of(message.layout.dim[0].label)


def said(messages: list[Any], text: str) -> bool:
    """Whether diagnostics of now say it."""
    return any(text in status.message for message in messages[-2:] for status in message.status)


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
