"""The node under a real rclpy, over DDS: its life, its actions, and every way in which nothing should move.

Skipped where rclpy is not installed: `make test-ros2` makes an environment that has it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_vla
from edge_vla.errors import DeviceLostError
from edge_vla.robot.ros2.messages import (
    ARRAY,
    DIAGNOSTICS,
    FLOAT,
    TEXT,
    TRAJECTORY,
    TWIST,
    Message,
    Origin,
    Stamp,
    header,
)
from edge_vla.robot.ros2.typed import build

pytest.importorskip("rclpy", reason="rclpy is not installed: make test-ros2")

from benchmarks.robot.ros2_peer import LATCHED, RELIABLE, Peer, process, wait_for
from tests.robot.ros2 import example
from tests.robot.ros2.example import INSTRUCTION, pictures
from tests.robot.ros2.nodes import origin, running, said, slowed

IMAGE = "sensor_msgs/msg/Image"
TOPIC = "/camera/image_raw"


def frames(messages: list[Any]) -> list[Any]:
    return [message for message in messages if not origin(message).rest]


def started(peer: Peer) -> tuple[Any, list[Any]]:
    """A configured and active node's camera and actions, once both are matched."""
    actions, camera = peer.collect(ARRAY, "/edge_vla/action"), peer.publisher(IMAGE, TOPIC)
    assert peer.change("configure")
    assert peer.change("activate")
    wait_for(lambda: camera.get_subscription_count() and peer.node.count_publishers("/edge_vla/action"))
    return camera, actions


def keep_sending(peer: Peer, camera: Any, images: Iterator[Any], condition: Callable[[], Any]) -> None:
    """Fresh images until `condition` holds: a busy machine may let one grow old."""
    while not condition():
        camera.publish(peer.image(next(images), peer.now()))
        time.sleep(0.2)


def skipped(node: Any) -> Mapping[str, int]:
    found: Mapping[str, int] = node._snapshot().pilot.skipped
    return found


def test_lifecycle_walked_and_every_action_is_its_own_image_s(
    artifact: Path, settings: dict[str, Any], peer: Peer
) -> None:
    """In a process of its own. What it must give is computed here, by the policy alone."""
    policy, images = edge_vla.load(artifact), pictures(7)
    expected = [policy.act(image, INSTRUCTION).values for image in images]
    with process(**settings) as child:
        assert peer.state() == "unconfigured"
        camera, actions = started(peer)
        assert peer.state() == "active"
        sent: list[Stamp] = []
        for number in range(40):
            sent.append(peer.now())
            camera.publish(peer.image(images[number % 7], sent[-1]))
            wait_for(lambda: len(frames(actions)) > number)  # noqa: B023
        assert [origin(each).stamp for each in frames(actions)] == sent
        for number, message in enumerate(frames(actions)):
            np.testing.assert_array_equal(message.data, expected[number % 7])
        assert {origin(each).frame_id for each in frames(actions)} == {"camera"}
        assert peer.change("deactivate")
        wait_for(lambda: origin(actions[-1]).rest)
        np.testing.assert_array_equal(actions[-1].data[:6], np.zeros(6))
        assert peer.state() == "inactive"
        assert peer.change("cleanup")
        assert peer.state() == "unconfigured"
        assert peer.change("configure")
        assert peer.change("shutdown")
        child.wait(10)
        assert child.returncode == 0


def test_a_signal_brings_the_robot_to_rest_before_the_process_ends(settings: dict[str, Any], peer: Peer) -> None:
    with process(**settings) as child:
        camera, actions = started(peer)
        camera.publish(peer.image(pictures(1)[0], peer.now()))
        wait_for(lambda: frames(actions))
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        wait_for(lambda: origin(actions[-1]).rest)
        np.testing.assert_array_equal(actions[-1].data[:6], np.zeros(6))


def test_the_newest_image_wins_and_the_executor_answers_meanwhile(settings: dict[str, Any], peer: Peer) -> None:
    with running(slowed(lambda: time.sleep(0.6)), **settings) as node:
        camera, actions = started(peer)
        sent = []
        for image in pictures(6):
            sent.append(peer.now())
            camera.publish(peer.image(image, sent[-1]))
            time.sleep(0.02)
        began = time.monotonic()
        assert peer.state() == "active"
        assert time.monotonic() - began < 0.4  # the policy sleeps longer than that
        wait_for(lambda: len(frames(actions)) == 2)
        time.sleep(0.7)
        assert [origin(each).stamp for each in frames(actions)] == [sent[0], sent[-1]]
        assert skipped(node)["superseded"] == 4


def test_a_stale_image_moves_nothing_and_a_moving_robot_rests(settings: dict[str, Any], peer: Peer) -> None:
    Path(settings["robot"]).write_text(example.IMPATIENT, encoding="utf-8")
    with running(**settings) as node:
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        camera, actions = started(peer)
        images = iter(pictures(99))  # each another: the same one again and again would be a frozen camera
        keep_sending(peer, camera, images, lambda: frames(actions))
        count = len(frames(actions))
        for image in pictures(15):
            camera.publish(peer.image(image, Stamp.of(peer.now().nanoseconds - 700_000_000)))
            time.sleep(0.05)
        wait_for(lambda: origin(actions[-1]).rest)
        assert len(frames(actions)) == count
        wait_for(lambda: said(diagnostics, "ms old by its stamp, at most 400 ms are allowed"))
        assert skipped(node)["stale"] + skipped(node).get("superseded", 0) >= 15
        camera.publish(peer.image(next(images), Stamp.of(peer.now().nanoseconds + 3_000_000_000)))
        wait_for(lambda: said(diagnostics, "ahead of ROS time"))
        keep_sending(peer, camera, images, lambda: len(frames(actions)) > count)  # recover = 1


@pytest.mark.parametrize("encoding", ["mono8", "16UC1"])
def test_a_picture_without_colours_is_refused_by_name(settings: dict[str, Any], peer: Peer, encoding: str) -> None:
    with running(**settings):
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        camera, actions = started(peer)
        camera.publish(peer.image(pictures(1)[0][:, :, :1], peer.now(), encoding))
        wait_for(lambda: said(diagnostics, "grey or depth: the policy learned from colours"))
        assert not actions


def test_a_camera_that_froze_or_went_dark_holds_the_robot(settings: dict[str, Any], peer: Peer) -> None:
    Path(settings["robot"]).write_text(example.IMPATIENT, encoding="utf-8")
    with running(**settings) as node:
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        camera, actions = started(peer)
        keep_sending(peer, camera, iter(pictures(99)), lambda: frames(actions))
        for _ in range(30):  # the same pixels for longer than the declared second
            camera.publish(peer.image(pictures(1)[0], peer.now()))
            time.sleep(0.05)
        wait_for(lambda: said(diagnostics, "has sent the same picture for"))
        wait_for(lambda: origin(actions[-1]).rest)
        camera.publish(peer.image(np.zeros((48, 64, 3), np.uint8), peer.now()))
        wait_for(lambda: said(diagnostics, "is black (0.0 of 255)"))
        assert skipped(node)["camera"] >= 2


def test_compressed_images_give_what_the_policy_gives_for_the_decoded_one(
    artifact: Path, settings: dict[str, Any], peer: Peer
) -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(file, "JPEG")
    expected = edge_vla.load(artifact).act(Image.open(io.BytesIO(file.getvalue())), INSTRUCTION).values
    settings |= {"image_transport": "compressed", "image_topic": "/camera/compressed"}
    with running(**settings):
        actions = peer.collect(ARRAY, "/edge_vla/action")
        camera = peer.publisher("sensor_msgs/msg/CompressedImage", "/camera/compressed")
        assert peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        fields: Message = {"header": header(Origin(peer.now(), "camera")), "format": "rgb8; jpeg compressed bgr8"}
        message = build("sensor_msgs/msg/CompressedImage", fields)
        message.data = file.getvalue()
        camera.publish(message)
        wait_for(lambda: frames(actions))
        np.testing.assert_array_equal(actions[0].data, expected)


def test_the_instruction_is_latched_and_followed(artifact: Path, settings: dict[str, Any], peer: Peer) -> None:
    """Published before the node listens, on a transient_local topic; then changed by topic, then by parameter."""
    policy, image = edge_vla.load(artifact), pictures(1)[0]
    words = ["open the drawer", "close the drawer", "push the button"]
    expected = [policy.act(image, each).values for each in words]
    topic = peer.publisher(TEXT, "/edge_vla/instruction", LATCHED)
    topic.publish(build(TEXT, {"data": words[0]}))
    with running(**settings | {"instruction": ""}) as node:
        camera, actions = started(peer)
        wait_for(lambda: node._instruction == words[0])
        for number, change in enumerate((None, lambda: topic.publish(build(TEXT, {"data": words[1]})), None)):
            if change is not None:
                change()
            elif number:
                assert peer.set(instruction=words[2]) == []
            wait_for(lambda: node._instruction == words[number])  # noqa: B023
            camera.publish(peer.image(image, peer.now()))
            wait_for(lambda: len(frames(actions)) > number)  # noqa: B023
            np.testing.assert_array_equal(frames(actions)[-1].data, expected[number])


def test_without_an_instruction_nothing_moves(settings: dict[str, Any], peer: Peer) -> None:
    with running(**settings | {"instruction": ""}):
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        camera, actions = started(peer)
        camera.publish(peer.image(pictures(1)[0], peer.now()))
        wait_for(lambda: said(diagnostics, "no instruction yet"))
        assert not actions


def test_a_policy_that_loses_its_device_ends_finalised_with_the_reason(settings: dict[str, Any], peer: Peer) -> None:
    calls = []

    def lost() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise DeviceLostError("the GPU fell off the bus: start this process again")

    with running(slowed(lost), **settings) as node:
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        camera, actions = started(peer)
        for number in range(2):
            camera.publish(peer.image(pictures(1)[0], peer.now()))
            wait_for(lambda: len(calls) > number)  # noqa: B023
            wait_for(lambda: actions)
        wait_for(lambda: peer.state() == "finalized")
        wait_for(lambda: said(diagnostics, "the GPU fell off the bus"))
        assert origin(actions[-1]).rest
        np.testing.assert_array_equal(actions[-1].data[:6], np.zeros(6))
        assert node.error is not None
        assert node.error.exit_code == 3


def test_a_user_s_mistake_leaves_it_unconfigured_until_it_is_mended(
    settings: dict[str, Any], peer: Peer, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with running(**settings | {"artifact": str(empty)}) as node:
        diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
        assert not peer.change("configure")
        assert peer.state() == "unconfigured"
        wait_for(lambda: said(diagnostics, "is not an artifact"))
        assert peer.set(artifact=settings["artifact"], rate=21.0) == []
        assert not peer.change("configure")
        assert "rate is 21 and the robot declares an action each 50 ms" in node.failure
        assert peer.set(rate=0.0, action_form="trajectory") == []
        assert not peer.change("configure")
        assert "joint positions in m or rad" in node.failure
        assert peer.set(action_form="array", image_qos="sometimes") == []
        assert not peer.change("configure")
        assert "image_qos is 'sometimes'" in node.failure
        assert peer.set(image_qos="best_effort") == []
        assert peer.change("configure")
        assert node.failure == ""
        (reason,) = peer.set(artifact="/elsewhere")
        assert "artifact is read when the node is configured: ros2 lifecycle set /edge_vla cleanup first" in reason


def test_a_twist_and_a_trajectory_are_what_their_classes_say(settings: dict[str, Any], peer: Peer) -> None:
    with running(**settings | {"action_form": "twist", "action_topic": "/servo/delta_twist_cmds"}):
        twists, grips = peer.collect(TWIST, "/servo/delta_twist_cmds"), peer.collect(FLOAT, "/edge_vla/gripper")
        camera, _ = peer.publisher(IMAGE, TOPIC), peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        stamp = peer.now()
        camera.publish(peer.image(pictures(1)[0], stamp))
        wait_for(lambda: twists and grips)
        header = twists[0].header
        assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (stamp.sec, stamp.nanosec, "camera")
    Path(settings["robot"]).write_text(example.JOINTS, encoding="utf-8")
    joints = {"action_form": "trajectory", "joint_names": ["a", "b", "c", "d", "e", "f"], "start_pose": [0.0] * 7}
    with running(**settings | joints):
        found, grips = peer.collect(TRAJECTORY, "/edge_vla/action"), peer.collect(FLOAT, "/edge_vla/gripper")
        assert peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        stamp = peer.now()
        camera.publish(peer.image(pictures(1)[0], stamp))
        wait_for(lambda: found and grips)
        (point,) = found[0].points
        end = stamp.nanoseconds / 1e9 + point.time_from_start.sec + point.time_from_start.nanosec / 1e9
        assert found[0].joint_names == ["a", "b", "c", "d", "e", "f"]
        assert len(point.positions) == 6
        assert 0 < end - stamp.nanoseconds / 1e9 - 0.05 < 0.5  # one period from when it was sent


def test_without_diagnostic_msgs_a_string_says_the_same(
    settings: dict[str, Any], peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diagnostic_msgs.msg", None)
    with running(**settings):
        found = peer.collect(TEXT, "/edge_vla/diagnostics", RELIABLE)
        line = json.loads(wait_for(lambda: found)[0].data)["status"][0]
        assert line["name"] == "/edge_vla: policy"
        assert line["values"]["lifecycle"] == "unconfigured"
