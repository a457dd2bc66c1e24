"""The node among others: quality of service that does not fit, a clock that jumps, a policy behind a server.

Skipped where rclpy is not installed: `make test-ros2` makes an environment that has it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_vla
from benchmarks.serve.server import serving
from edge_vla.robot.ros2.messages import ARRAY, DIAGNOSTICS, TEXT, Stamp
from edge_vla.robot.ros2.typed import build, message_class

pytest.importorskip("rclpy", reason="rclpy is not installed: make test-ros2")

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from benchmarks.robot.ros2_peer import LATCHED, Peer, wait_for
from edge_vla.robot.ros2.qos import Qos
from edge_vla.robot.ros2.topics import Topic, outlived, profile
from tests.robot.ros2.example import INSTRUCTION, pictures
from tests.robot.ros2.nodes import origin, running, said

IMAGE = "sensor_msgs/msg/Image"
TOPIC = "/camera/image_raw"
CLOCK = "rosgraph_msgs/msg/Clock"
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
VOLATILE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)


def test_a_camera_that_offers_less_is_named_and_following_the_remedy_ends_it(
    settings: dict[str, Any], peer: Peer
) -> None:
    diagnostics, actions = peer.collect(DIAGNOSTICS, "/diagnostics"), peer.collect(ARRAY, "/edge_vla/action")
    camera = peer.publisher(IMAGE, TOPIC, BEST_EFFORT)
    with running(**settings | {"image_qos": "reliable, depth=1"}) as node:
        assert peer.change("configure")
        heard = wait_for(lambda: node.mismatches)
        me = f"/{peer.node.get_name()}"
        assert (
            f"no data flows on {TOPIC}: reliability does not fit, this node has reliable and {me} (best_effort)"
            in (heard[0])
        )
        wait_for(lambda: said(diagnostics, 'set image_qos: "best_effort, depth=1"'))
        assert peer.change("cleanup")
        assert peer.set(image_qos="best_effort, depth=1") == []
        assert peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        wait_for(lambda: not said(diagnostics, "does not fit"))
        camera.publish(peer.image(pictures(1)[0], peer.now()))
        wait_for(lambda: actions)


def test_a_receiver_and_a_speaker_that_do_not_fit_are_named_too(settings: dict[str, Any], peer: Peer) -> None:
    """DDS tells whichever end it asks; the graph tells the node, whoever came first."""
    diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")
    with running(**settings):
        assert peer.change("configure")
        peer.collect(ARRAY, "/edge_vla/action", LATCHED)
        wait_for(lambda: said(diagnostics, 'set action_qos: "reliable, transient_local, depth=10"'))
        peer.publisher(TEXT, "/edge_vla/instruction", VOLATILE)
        wait_for(lambda: said(diagnostics, "no data flows on /edge_vla/instruction: durability does not fit"))
        wait_for(lambda: said(diagnostics, "ros2 topic pub --qos-durability transient_local"))


def test_a_topic_of_another_type_is_refused_by_name(settings: dict[str, Any], peer: Peer) -> None:
    with running(**settings | {"action_topic": "/diagnostics"}) as node:
        assert not peer.change("configure")
        assert "a topic cannot be made" in node.failure
        assert peer.state() == "unconfigured"


class Simulation:
    """A simulator's clock, as /clock has it."""

    def __init__(self, peer: Peer, start_s: float) -> None:
        self._topic, self.now_ns = peer.publisher(CLOCK, "/clock"), round(1e9 * start_s)
        wait_for(self._topic.get_subscription_count)
        self.run(0.0)

    def run(self, seconds: float) -> Stamp:
        """That much further; the time then, once it has been heard."""
        self.now_ns += round(1e9 * seconds)
        stamp = Stamp.of(self.now_ns)
        self._topic.publish(build(CLOCK, {"clock": {"sec": stamp.sec, "nanosec": stamp.nanosec}}))
        time.sleep(0.05)
        return stamp


def test_simulated_time_that_jumps_back_is_named_and_old_images_are_not_acted_on(
    settings: dict[str, Any], peer: Peer
) -> None:
    diagnostics, actions = peer.collect(DIAGNOSTICS, "/diagnostics"), peer.collect(ARRAY, "/edge_vla/action")
    images = iter(pictures(20))
    with running(**settings | {"use_sim_time": True}):
        camera = peer.publisher(IMAGE, TOPIC)
        assert peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        camera.publish(peer.image(next(images), Stamp(100, 0)))
        wait_for(lambda: said(diagnostics, "use_sim_time is true and no /clock has come"))
        clock = Simulation(peer, 100.0)
        for number in range(3):
            camera.publish(peer.image(next(images), clock.run(0.05)))
            wait_for(lambda: len(actions) > number)  # noqa: B023
        before = Stamp.of(clock.now_ns)
        clock.run(-95.0)
        wait_for(lambda: said(diagnostics, "ROS time jumped back by 95.000 s"))
        wait_for(lambda: origin(actions[-1]).rest)
        count = len(actions)
        camera.publish(peer.image(next(images), before))  # still on its way when the clock jumped
        wait_for(lambda: said(diagnostics, "ahead of ROS time: use_sim_time is true here, so the camera needs it too"))
        assert len([each for each in actions[count:] if not origin(each).rest]) == 0
        camera.publish(peer.image(next(images), clock.run(0.05)))
        wait_for(lambda: not origin(actions[-1]).rest)
        assert origin(actions[-1]).stamp.sec == 5


def test_a_policy_behind_our_server_gives_what_it_gives_here(
    artifact: Path, settings: dict[str, Any], peer: Peer
) -> None:
    policy, images = edge_vla.load(artifact), pictures(5)
    expected = [policy.act(image, INSTRUCTION).values for image in images]
    actions, diagnostics = peer.collect(ARRAY, "/edge_vla/action"), peer.collect(DIAGNOSTICS, "/diagnostics")
    with serving(artifact) as server, running(**settings | {"artifact": "", "server": f"ws://127.0.0.1:{server.port}"}):
        camera = peer.publisher(IMAGE, TOPIC)
        assert peer.change("configure")
        assert peer.change("activate")
        wait_for(camera.get_subscription_count)
        for number, image in enumerate(images):
            camera.publish(peer.image(image, peer.now()))
            wait_for(lambda: len(actions) > number)  # noqa: B023
            np.testing.assert_array_equal(actions[number].data, expected[number])
        server.process.kill()
        camera.publish(peer.image(images[0], peer.now()))
        wait_for(lambda: said(diagnostics, "no action from the server"))
        wait_for(lambda: origin(actions[-1]).rest)


def test_an_event_whose_turn_comes_after_its_topic_was_given_back_is_nothing(peer: Peer) -> None:
    """As where `cleanup` is asked for while DDS reports a mismatch: rclpy's own handler would raise in the executor."""
    topic = Topic(TOPIC, "image_qos", Qos("reliable"), "subscription")
    events = topic.events(peer.node, lambda _: None)
    camera = outlived(
        peer.node.create_subscription(
            message_class(IMAGE), TOPIC, lambda _: None, profile(topic.qos), event_callbacks=events
        )
    )
    handlers = list(camera.event_handlers)
    peer.node.destroy_subscription(camera)
    assert handlers
    for handler in handlers:
        handler._ready_to_take_data = True  # as the executor's wait leaves it
        assert handler.take_data() is None
