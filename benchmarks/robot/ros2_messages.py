"""Does every image get its own action over ROS 2? `python -m benchmarks.robot.ros2_messages --out FILE`.

    --run RATE:COUNT[:paced]    images a second, and how many; repeat. 10:10000:paced takes 17 minutes.

Needs rclpy: `make test-ros2` makes an environment that has it. The node runs in a process of its own; what each action
must be is computed in this one, by the policy alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import edge_vla
from benchmarks import study
from benchmarks.robot.ros2_results import MessageRun, Named, Ros2Result, Step
from benchmarks.serve.frames import frames
from benchmarks.serve.results import Spread
from benchmarks.serve.server import demo_artifact
from edge_vla.artifact import Artifact
from edge_vla.robot.ros2.messages import ARRAY, DIAGNOSTICS, TEXT, Stamp, origin_of

PICTURES: Final = 97
SQUARE: Final = 224
INSTRUCTION: Final = "pick up the red block"
TOPIC: Final = "/camera/image_raw"
WAIT_S: Final = 20.0  # for an action, before its image counts as lost
REPORT_S: Final = 60.0  # for two reports, which come twice a second on a machine that is not busy
SKIPPED: Final = "skipped: "
IMAGE: Final = "sensor_msgs/msg/Image"
# Wide limits and patient deadlines: this study is about messages, and a busy machine must not turn a frame stale.
ROBOT: Final = """
name = "study"
actions = "delta"
period_ms = {period}
policy.units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
policy.gripper = {{ open = 1.0, closed = 0.0 }}
robot.units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
robot.gripper = {{ open = 1.0, closed = 0.0 }}
gripper.at_rest = "open"
limits.bounds = "statistics"
camera.max_age_ms = 20000
camera.frozen_ms = 0
watchdog.on_stale = "hold"
watchdog.after_ms = 30000
watchdog.recover = 1
"""


@dataclass(frozen=True, eq=False)
class Material:
    """`images` (n, side, side, 3) uint8 and the actions that the policy gives for them here."""

    images: list[NDArray[np.uint8]]
    actions: list[NDArray[np.float64]]

    @staticmethod
    def of(artifact: Path) -> Material:
        images = [frame.image for frame in frames(artifact, PICTURES, SQUARE)]
        policy = edge_vla.load(artifact)
        return Material(images, [policy.act(image, INSTRUCTION).values for image in images])

    @property
    def distinct(self) -> int:
        return len({tuple(action.tolist()) for action in self.actions})


@dataclass(frozen=True)
class Asked:
    """A run as the command line says it."""

    rate_hz: float
    count: int
    paced: bool

    @staticmethod
    def parse(text: str) -> Asked:
        rate, count, *how = text.split(":")
        if how not in ([], ["paced"]):
            raise ValueError(text)
        return Asked(float(rate), int(count), bool(how))


@dataclass
class Heard:
    """Actions as they come: the stamp of their image, when, and their values."""

    frames: list[tuple[Stamp, float, NDArray[np.float64]]] = field(default_factory=list)
    rests: int = 0

    def hear(self, message: Any) -> None:
        origin = origin_of(message.layout.dim[0].label)
        if origin.rest:
            self.rests += 1
        else:
            self.frames.append((origin.stamp, time.monotonic(), np.array(message.data)))


class Study:
    """One node, walked through its life for each run."""

    def __init__(self, peer: Any, material: Material) -> None:
        self._peer, self._material = peer, material
        self.steps: list[Step] = []
        self._diagnostics = peer.collect(DIAGNOSTICS, "/diagnostics")

    def change(self, transition: str) -> None:
        succeeded = self._peer.change(transition)
        self.steps.append(Step(transition=transition, succeeded=succeeded, state=self._peer.state()))

    def shut_down(self, child: subprocess.Popen[str]) -> None:
        """The process ends with it, so its exit code stands for the state."""
        succeeded = self._peer.change("shutdown")
        code = child.wait(WAIT_S)
        self.steps.append(Step(transition="shutdown", succeeded=succeeded, state=f"ended with exit code {code}"))

    def measure(self, asked: Asked) -> MessageRun:
        """The node is configured; active only during the run."""
        from benchmarks.robot.ros2_peer import RELIABLE, wait_for
        from edge_vla.robot.ros2.typed import message_class

        heard = Heard()
        camera = self._peer.publisher(IMAGE, TOPIC)
        subscription = self._peer.node.create_subscription(
            message_class(ARRAY), "/edge_vla/action", heard.hear, RELIABLE
        )
        self.change("activate")
        wait_for(camera.get_subscription_count)
        sent, began = self._send(asked, camera, heard)
        seconds = time.monotonic() - began
        rests, skipped = heard.rests, self._skipped()
        self.change("deactivate")
        self._peer.node.destroy_subscription(subscription)
        self._peer.node.destroy_publisher(camera)
        return self._counted(asked, sent, heard, skipped, rests, seconds)

    def _send(self, asked: Asked, camera: Any, heard: Heard) -> tuple[list[tuple[Stamp, float]], float]:
        """Every image's stamp, and when it went; and when the first was due."""
        began, sent = time.monotonic(), list[tuple[Stamp, float]]()
        for number in range(asked.count):
            time.sleep(max(0.0, began + number / asked.rate_hz - time.monotonic()))
            stamp = self._peer.now()
            image = self._peer.image(self._material.images[number % PICTURES], stamp)
            sent.append((stamp, time.monotonic()))
            camera.publish(image)
            if asked.paced:
                self._wait(heard, stamp)
        self._wait(heard, sent[-1][0])
        return sent, began

    @staticmethod
    def _wait(heard: Heard, stamp: Stamp) -> None:
        until = time.monotonic() + WAIT_S
        while (not heard.frames or heard.frames[-1][0] != stamp) and time.monotonic() < until:
            time.sleep(0.001)

    def _skipped(self) -> dict[str, int]:
        """Why images got no action, as the node counts it in the report after the last one."""
        count = len(self._diagnostics)
        until = time.monotonic() + REPORT_S
        while len(self._diagnostics) < count + 2 and time.monotonic() < until:
            time.sleep(0.05)
        values = [(pair.key, pair.value) for status in self._diagnostics[-1].status for pair in status.values]
        return {key.removeprefix(SKIPPED): int(value) for key, value in values if key.startswith(SKIPPED)}

    def _counted(
        self,
        asked: Asked,
        sent: list[tuple[Stamp, float]],
        heard: Heard,
        skipped: dict[str, int],
        rests: int,
        seconds: float,
    ) -> MessageRun:
        numbers = {stamp: number for number, (stamp, _) in enumerate(sent)}
        found = [(numbers[stamp], when, values) for stamp, when, values in heard.frames]  # KeyError: of no image
        times = Counter(number for number, _, _ in found)
        order = [number for number, _, _ in found]
        wrong = sum(
            not np.array_equal(values, self._material.actions[number % PICTURES]) for number, _, values in found
        )
        return MessageRun(
            rate_hz=asked.rate_hz,
            paced=asked.paced,
            sent=len(sent),
            answered=len(times),
            skipped=skipped,
            lost=len(sent) - len(times) - sum(skipped.values()),
            doubled=sum(count > 1 for count in times.values()),
            out_of_order=sum(after < before for before, after in itertools.pairwise(order)),
            wrong=wrong,
            unasked=rests,
            seconds=round(seconds, 1),
            achieved_hz=round(len(sent) / seconds, 3),
            round_trip=Spread.of([1e3 * (when - sent[number][1]) for number, when, _ in found]),
        )


def mismatches(peer: Any) -> Iterator[Named]:
    """Endpoints that do not fit the node, one after another, while it is configured."""
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    from benchmarks.robot.ros2_peer import LATCHED, wait_for
    from edge_vla.robot.ros2.typed import message_class

    found = peer.collect(DIAGNOSTICS, "/diagnostics")

    def said() -> str:
        lines = [each.message for message in found[-1:] for each in message.status if "does not fit" in each.message]
        return lines[0] if lines else ""

    volatile = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
    receiver = peer.node.create_subscription(message_class(ARRAY), "/edge_vla/action", lambda _: None, LATCHED)
    yield Named(what="a receiver of actions that asks for transient_local", line=wait_for(said))
    peer.node.destroy_subscription(receiver)
    wait_for(lambda: not said())
    speaker = peer.publisher(TEXT, "/edge_vla/instruction", volatile)
    yield Named(what="an instruction from a volatile publisher", line=wait_for(said))
    peer.node.destroy_publisher(speaker)
    wait_for(lambda: not said())
    peer.change("cleanup")
    peer.set(image_qos="reliable, depth=1")
    peer.change("configure")
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    camera = peer.publisher(IMAGE, TOPIC, best_effort)
    yield Named(what="images from a best-effort camera, image_qos reliable", line=wait_for(said))
    peer.node.destroy_publisher(camera)


def studied(artifact: Path, asked: Sequence[Asked], scratch: Path, note: str, until: float) -> Ros2Result:
    import rclpy

    from benchmarks.robot.ros2_peer import peering, process

    material = Material.of(artifact)
    robot = scratch / "robot.toml"
    robot.write_text(ROBOT.format(period=round(1e3 / max(run.rate_hz for run in asked), 3)), encoding="utf-8")
    parameters = {"artifact": str(artifact), "robot": str(robot), "instruction": INSTRUCTION}
    with process(scratch / "node.log", **parameters) as child, peering() as peer:
        walk = Study(peer, material)
        walk.change("configure")
        runs = [walk.measure(run) for run in asked if time.monotonic() < until]
        named = list(mismatches(peer))
        walk.change("cleanup")
        walk.change("configure")
        walk.shut_down(child)
    return Ros2Result(
        distribution=os.environ.get("ROS_DISTRO") or "kilted (community wheels)",
        middleware=rclpy.get_rmw_implementation_identifier(),
        artifact=Artifact(artifact).identity[:12],
        pictures=PICTURES,
        actions=material.distinct,
        lifecycle=walk.steps,
        runs=runs,
        mismatches=named,
        note=note,
    )


@contextmanager
def ros() -> Iterator[None]:
    """A ROS graph of this machine alone."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(101 + os.getpid() % 100))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_LOCALHOST_ONLY", "1")
    import rclpy

    rclpy.init()
    try:
        yield
    finally:
        rclpy.try_shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robot.ros2_messages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="keep the demo policy here; made anew by default")
    parser.add_argument("--run", type=Asked.parse, action="append", metavar="RATE:COUNT[:paced]")
    parser.add_argument("--within", type=float, default=3600.0, help="seconds after which no further run begins")
    parser.add_argument("--note", default="", help="what else was going on, for the result")
    options = parser.parse_args()
    until = time.monotonic() + options.within
    with tempfile.TemporaryDirectory() as scratch, ros():
        artifact = demo_artifact(options.artifact or Path(scratch) / "artifact")
        runs = options.run or [Asked(10.0, 10_000, paced=True)]
        study.write_result(options.out, studied(artifact, runs, Path(scratch), options.note, until))


if __name__ == "__main__":
    study.run(main)
