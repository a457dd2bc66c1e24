"""`edge-vla act` with a topic as its camera and a topic as its robot: over DDS, over rosbridge_suite's own server, and
over a small server that speaks its protocol and can be cut.

Skipped where rclpy or roslibpy is not installed: `make test-ros2` makes an environment that has both. The suite's own
server is skipped without EDGE_VLA_ROSBRIDGE, a checkout of RobotWebTools/rosbridge_suite.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_vla
from benchmarks import study
from benchmarks.serve.server import free_port
from edge_vla.errors import BackendError
from edge_vla.robot.faces import CameraError, Command, LinkError
from edge_vla.robot.ros2.ends import CAMERA_OPTIONS, ROBOT_OPTIONS, Address
from edge_vla.robot.ros2.messages import ARRAY, Stamp, origin_of
from edge_vla.robot.ros2.opening import ros_camera, ros_sink
from edge_vla.robot.units import Declaration
from tests.robot.ros2.bridge import SmallBridge, small_bridge
from tests.robot.ros2.example import INSTRUCTION, ROBOT, pictures

IMAGE = "sensor_msgs/msg/Image"
SECONDS = 12
SLOW = ROBOT.replace("period_ms = 50", "period_ms = 400")  # a busy machine must not fail a test of messages


@pytest.fixture
def robot(tmp_path: Path) -> Path:
    path = tmp_path / "arm.toml"
    path.write_text(SLOW, encoding="utf-8")
    return path


def acted(artifact: Path, robot: Path, camera: str, to: str) -> tuple[list[Any], dict[Stamp, int]]:
    """What the robot heard while `edge-vla act` ran, and the number of the picture of each stamp that was sent."""
    from benchmarks.robot.ros2_peer import peering

    images, sent = pictures(50), dict[Stamp, int]()
    words = ["--robot", str(robot), "--instruction", INSTRUCTION, "--camera", camera, "--to", to]
    with peering() as peer:
        actions = peer.collect(ARRAY, "/arm/action")
        eye = peer.publisher(IMAGE, "/camera/image_raw")
        command = [sys.executable, "-m", "edge_vla.cli", "act", str(artifact), *words, "--seconds", str(SECONDS)]
        child = subprocess.Popen(command, env=study.child_environment())
        while child.poll() is None:
            stamp = peer.now()
            sent[stamp] = len(sent) % 50
            eye.publish(peer.image(images[sent[stamp]], stamp))
            time.sleep(0.1)
    assert child.returncode == 0
    return actions, sent


def check(artifact: Path, actions: list[Any], sent: dict[Stamp, int]) -> None:
    """Every action is its own picture's, bit for bit, and the last command rests."""
    policy, images = edge_vla.load(artifact), pictures(50)
    found = [(origin_of(each.layout.dim[0].label), np.array(each.data)) for each in actions]
    moved = [(origin, values) for origin, values in found if not origin.rest]
    assert len(moved) >= 3
    assert len({origin.stamp for origin, _ in moved}) == len(moved)
    for origin, values in moved:
        assert origin.frame_id == "camera"
        np.testing.assert_array_equal(values, policy.act(images[sent[origin.stamp]], INSTRUCTION).values)
    assert found[-1][0].rest
    np.testing.assert_array_equal(found[-1][1][:6], np.zeros(6))


@pytest.mark.usefixtures("ros")
def test_act_over_dds(artifact: Path, robot: Path) -> None:
    check(artifact, *acted(artifact, robot, "ros2:/camera/image_raw", "ros2:/arm/action"))


@pytest.mark.usefixtures("ros")
def test_act_over_rosbridge_s_own_server(artifact: Path, robot: Path) -> None:
    pytest.importorskip("roslibpy", reason="roslibpy is not installed: make test-ros2")
    checkout = os.environ.get("EDGE_VLA_ROSBRIDGE")
    if not checkout:
        pytest.skip("EDGE_VLA_ROSBRIDGE is not set: a checkout of RobotWebTools/rosbridge_suite")
    port = free_port()
    command = [sys.executable, "-m", "tests.robot.ros2.bridge", checkout, str(port)]
    server = subprocess.Popen(command, env=study.child_environment())
    try:
        place = f"rosbridge://127.0.0.1:{port}"
        check(artifact, *acted(artifact, robot, f"{place}/camera/image_raw", f"{place}/arm/action"))
    finally:
        server.kill()
        server.wait(10)


@pytest.mark.usefixtures("ros")
def test_a_topic_without_anybody_says_so() -> None:
    eye = ros_camera("ros2:/nobody/image")
    sink = ros_sink("ros2:/nobody/action", Declaration.read(_written(SLOW)))
    with pytest.raises(CameraError, match=r"nobody publishes it: ros2 topic list"):
        eye.newest(0, time.monotonic() + 0.2)
    with pytest.raises(LinkError, match=r"nobody subscribes to /nobody/action"):
        sink.ready()
    for end in (eye, sink, eye, sink):
        end.close()


def _written(text: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "arm.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_rclpy_or_roslibpy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, robot: Path) -> None:
    for name in ("rclpy", "roslibpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("edge_vla.robot.ros2.links", "edge_vla.robot.rosbridge"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(BackendError, match=r"source /opt/ros/\$ROS_DISTRO/setup.bash"):
        ros_camera("ros2:/camera/image_raw")
    with pytest.raises(BackendError, match=r"pip install 'edge-vla\[rosbridge\]'"):
        ros_sink("rosbridge://127.0.0.1/arm/action", Declaration.read(robot))


class Ends:
    """Camera and robot at one small bridge."""

    def __init__(self, bridge: SmallBridge, robot: Path, camera: str = "/camera/image_raw") -> None:
        from edge_vla.robot.rosbridge import BridgeCamera, BridgeSink

        place = f"rosbridge://127.0.0.1:{bridge.port}"
        self.camera = BridgeCamera(Address.parse(f"{place}{camera}", "--camera", CAMERA_OPTIONS))
        self.sink = BridgeSink(Address.parse(f"{place}/arm/action", "--to", ROBOT_OPTIONS), Declaration.read(robot))
        eventually(lambda: bridge.subscribers(camera) and bridge.subscribers("/arm/action"))

    def close(self) -> None:
        self.camera.close()
        self.sink.close()


def eventually(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def json_image(pixels: np.ndarray, **changes: object) -> dict[str, object]:
    """A sensor_msgs/Image as rosbridge writes it."""
    sec, nanosec = divmod(time.time_ns(), 10**9)
    height, width, _ = pixels.shape
    message = {
        "header": {"stamp": {"sec": sec, "nanosec": nanosec}, "frame_id": "camera"},
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": 3 * width,
        "data": base64.b64encode(pixels.tobytes()).decode(),
    }
    return message | changes


def command(number: int, valid_s: float = 5.0, taken: float | None = None) -> Command:
    values = np.array([0.001 * number, 0, 0, 0, 0, 0, 1.0])
    return Command("action", number, values, taken or time.monotonic(), time.monotonic() + valid_s)


@pytest.fixture
def roslibpy() -> Any:
    return pytest.importorskip("roslibpy", reason="roslibpy is not installed: make test-ros2")


@pytest.mark.usefixtures("roslibpy")
def test_pictures_and_commands_cross_a_bridge_whole(robot: Path) -> None:
    with small_bridge() as bridge:
        ends, images = Ends(bridge, robot), pictures(5)
        number = 0
        for index, image in enumerate(images):
            message = json_image(image)
            bridge.publish("/camera/image_raw", message)
            picture = ends.camera.newest(number, time.monotonic() + 10)
            number = picture.number
            np.testing.assert_array_equal(picture.image, image)
            ends.sink.send(command(index, taken=picture.taken))
            stamp: Any = message["header"]
            origin = origin_of(bridge.heard[-1]["layout"]["dim"][0]["label"])
            assert (origin.stamp.sec, origin.stamp.nanosec) == (stamp["stamp"]["sec"], stamp["stamp"]["nanosec"])
            assert bridge.heard[-1]["data"] == command(index).values.tolist()
        ends.close()


@pytest.mark.usefixtures("roslibpy")
def test_a_compressed_picture_and_what_is_none(robot: Path) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(file, "PNG")
    with small_bridge() as bridge:
        ends = Ends(bridge, robot, "/camera/compressed")
        header = json_image(pictures(1)[0])["header"]
        good = {"header": header, "format": "png", "data": base64.b64encode(file.getvalue()).decode()}
        bridge.publish("/camera/compressed", good)
        picture = ends.camera.newest(0, time.monotonic() + 10)
        np.testing.assert_array_equal(picture.image, pictures(1)[0])
        for bad in ({}, {"header": header}, good | {"data": "not base64!"}, good | {"header": 3}, [1]):
            bridge.publish("/camera/compressed", bad)
            with pytest.raises(CameraError, match=r"a message that is no image") as caught:
                ends.camera.newest(picture.number, time.monotonic() + 1)
            assert caught.value.fault == "unreadable"
        ends.close()


@pytest.mark.usefixtures("roslibpy")
def test_a_command_that_does_not_come_back_counts_as_lost(robot: Path) -> None:
    with small_bridge() as bridge:
        ends = Ends(bridge, robot)
        ends.sink.send(command(1))
        bridge.mute = True
        with pytest.raises(LinkError, match=r"did not come back while it was valid") as caught:
            ends.sink.send(command(2, valid_s=0.3))
        assert (caught.value.fault, caught.value.taken) == ("silent", None)
        ends.close()


@pytest.mark.usefixtures("roslibpy")
def test_a_cut_bridge_is_told_and_nothing_is_sent_late_when_it_is_back(robot: Path) -> None:
    port = free_port()
    with small_bridge(port) as bridge:
        ends = Ends(bridge, robot)
        ends.sink.send(command(1))
    eventually(lambda: not ends.sink._bridge.connected)
    with pytest.raises(LinkError, match=r"is rosbridge_server running there") as caught:
        ends.sink.send(command(2))
    assert (caught.value.fault, caught.value.taken) == ("cut", False)
    with pytest.raises(CameraError, match=r"the connection to rosbridge broke"):
        ends.camera.newest(0, time.monotonic() + 0.1)
    with small_bridge(port) as again:
        eventually(lambda: again.subscribers("/arm/action") and again.subscribers("/camera/image_raw"))
        ends.sink.send(command(3))
        again.publish("/camera/image_raw", json_image(pictures(1)[0]))
        np.testing.assert_array_equal(ends.camera.newest(0, time.monotonic() + 10).image, pictures(1)[0])
        assert [each["data"][0] for each in again.heard] == [0.003]
        ends.close()
