"""A ROS graph of this machine and this process group alone, before anything imports rclpy; and what tests on it share.

A test that asks for `ros`, or for what needs it, is skipped where rclpy is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.serve.server import demo_artifact
from tests.robot.ros2.example import INSTRUCTION, ROBOT

if TYPE_CHECKING:
    from benchmarks.robot.ros2_peer import Peer

os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_LOCALHOST_ONLY", "1")  # Humble's name for it


@pytest.fixture(scope="module")
def ros() -> Iterator[None]:
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: make test-ros2")
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo policy in four bits, as a user would run it; or the artifact that the environment names."""
    kept = os.environ.get("EDGE_VLA_ROS2_ARTIFACT")
    return demo_artifact(Path(kept) if kept else tmp_path_factory.mktemp("ros2") / "artifact")


@pytest.fixture
def settings(artifact: Path, tmp_path: Path) -> dict[str, Any]:
    """The node's parameters."""
    robot = tmp_path / "arm.toml"
    robot.write_text(ROBOT, encoding="utf-8")
    return {"artifact": str(artifact), "robot": str(robot), "instruction": INSTRUCTION}


@pytest.fixture
def peer(ros: None) -> Iterator[Peer]:
    from benchmarks.robot.ros2_peer import peering

    with peering() as found:
        yield found
