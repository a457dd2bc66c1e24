"""The other end of every topic: a camera, a robot and a lifecycle client, spinning in a thread of their own.

Imports rclpy; tests that use it are skipped by name where it is not installed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from benchmarks import study
from edge_vla.robot.ros2.messages import Stamp
from edge_vla.robot.ros2.typed import build, message_class

T = TypeVar("T")
WAIT_S: Final = 20.0
ASKED: Final = 4
RELIABLE: Final = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATCHED: Final = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class Peer:
    """`node` as anybody would write one with rclpy; nothing of ours but the message builder."""

    def __init__(self, target: str = "/edge_vla", **options: Any) -> None:
        self.node = rclpy.create_node(f"peer_{time.monotonic_ns() % 10**9}", **options)
        self.target = target
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def collect(self, kind: str, topic: str, qos: QoSProfile = RELIABLE) -> list[Any]:
        """The messages of a topic, as they come."""
        found: list[Any] = []
        self.node.create_subscription(message_class(kind), topic, found.append, qos)
        return found

    def publisher(self, kind: str, topic: str, qos: QoSProfile = RELIABLE) -> Any:
        return self.node.create_publisher(message_class(kind), topic, qos)

    def now(self) -> Stamp:
        return Stamp.of(self.node.get_clock().now().nanoseconds)

    def image(self, pixels: NDArray[np.uint8], stamp: Stamp, encoding: str = "rgb8") -> Any:
        """(H, W, C) uint8 as a sensor_msgs/Image without padding."""
        height, width, channels = pixels.shape
        message = build(
            "sensor_msgs/msg/Image",
            {
                "header": {"stamp": {"sec": stamp.sec, "nanosec": stamp.nanosec}, "frame_id": "camera"},
                "height": height,
                "width": width,
                "encoding": encoding,
                "step": width * channels,
            },
        )
        message.data = pixels.tobytes()
        return message

    def change(self, transition: str) -> bool:
        """As `ros2 lifecycle set NODE TRANSITION`: whether it succeeded."""
        kind, before = service("lifecycle_msgs", "ChangeState"), self.state()
        request = kind.Request()
        request.transition.label = transition
        for _ in range(ASKED):
            with suppress(AssertionError):
                return bool(self.call(kind, f"{self.target}/change_state", request).success)
            if self.state() != before:  # done, and its answer lost
                return True
        raise AssertionError(f"{transition} was never answered")

    def state(self) -> str:
        kind = service("lifecycle_msgs", "GetState")
        return str(self.ask(kind, f"{self.target}/get_state", kind.Request()).current_state.label)

    def set(self, **parameters: Any) -> list[str]:
        """As `ros2 param set`: the reasons of those that were refused."""
        kind = service("rcl_interfaces", "SetParameters")
        asked = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        answer = self.ask(kind, f"{self.target}/set_parameters", kind.Request(parameters=asked))
        return [each.reason for each in answer.results if not each.successful]

    def call(self, kind: Any, name: str, request: Any, timeout_s: float = 60.0) -> Any:
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(WAIT_S), f"no service {name}"
        future = client.call_async(request)
        wait_for(future.done, timeout_s)
        self.node.destroy_client(client)
        return future.result()

    def ask(self, kind: Any, name: str, request: Any) -> Any:
        """As `call`, for what may be said twice: DDS loses an answer to a client that the server has not found yet."""
        for _ in range(ASKED):
            with suppress(AssertionError):
                return self.call(kind, name, request, WAIT_S)
        raise AssertionError(f"{name} never answered")

    def close(self) -> None:
        self._over = True
        self._thread.join(5.0)
        self._executor.shutdown()
        self.node.destroy_node()

    def _spin(self) -> None:
        while not self._over:
            self._executor.spin_once(timeout_sec=0.05)


def service(package: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{package}.srv"), name)


def wait_for(condition: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """What `condition` says as soon as that is true of anything. AssertionError where it never is."""
    until = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)
    return found


@contextmanager
def peering(**options: Any) -> Iterator[Peer]:
    peer = Peer(**options)
    try:
        yield peer
    finally:
        peer.close()


@contextmanager
def process(log: Path | None = None, **parameters: str) -> Iterator[subprocess.Popen[str]]:
    """`edge-vla ros2` as a user starts it; what it says goes to `log`."""
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    command = [sys.executable, "-m", "edge_vla.cli", "ros2", "--ros-args", *words]
    with Path(log or os.devnull).open("w", encoding="utf-8") as said:
        child = subprocess.Popen(command, stderr=said, stdout=said, text=True, env=study.child_environment())
        try:
            yield child
        finally:
            child.kill()
            child.wait(10)
