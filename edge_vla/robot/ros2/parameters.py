"""The node's parameters: names, defaults, and a line on each, as `ros2 param describe` shows it. Knows no rclpy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from edge_vla.errors import UsageError
from edge_vla.robot.ros2.qos import Qos

Value = str | float | bool | tuple[str, ...] | tuple[float, ...]
Of = Literal["image", "instruction", "action"]
T = TypeVar("T")
HELP: Final = "help"
LIVE: Final = ("instruction",)  # may be set at any time; the others while the node is unconfigured


def _parameter(default: T, text: str) -> T:
    found: T = dataclasses.field(default=default, metadata={HELP: text})
    return found


@dataclass(frozen=True)
class Parameters:
    """What a user may set. Topics that begin with ~ lie below the node's name."""

    artifact: str = _parameter("", "An artifact's directory, run in this process; or give server.")
    server: str = _parameter("", "Address of edge-vla serve, such as ws://192.168.1.20:8000; or give artifact.")
    token_file: str = _parameter("", "A file with the server's token.")
    robot: str = _parameter("", "The robot's declaration (TOML): units, gripper, limits, watchdog.")
    statistics: str = _parameter("", "dataset_statistics.json, for bounds by statistics with a server.")
    unnorm_key: str = _parameter("", "The data set that the action is scaled for; may be empty where there is one.")
    instruction: str = _parameter("", "What to do, until the instruction topic says something else.")
    device: str = _parameter("auto", "auto, cpu or cuda.")
    vision: str = _parameter("auto", "The vision backend, as edge-vla run --vision.")
    kernel: str = _parameter("auto", "The decoder's kernel, as edge-vla run --kernel.")
    dtype: str = _parameter("bf16", "Arithmetic: bf16 or fp32.")
    preprocess: str = _parameter("none", "What is done to every image first, as edge-vla run --preprocess.")
    rate: float = _parameter(0.0, "Actions a second; 0: as the robot's period_ms says, which is the most.")
    deadline_ms: float = _parameter(0.0, "How long to wait for a server's answer; 0: while the image may be used.")
    image_topic: str = _parameter("/camera/image_raw", "sensor_msgs/Image or CompressedImage.")
    image_transport: str = _parameter("raw", "raw: Image; compressed: CompressedImage, JPEG or PNG.")
    image_qos: str = _parameter("best_effort, depth=1", "best_effort takes reliable publishers too.")
    accept_unstamped: bool = _parameter(False, "An image without a stamp counts as taken when it came.")
    instruction_topic: str = _parameter("~/instruction", "std_msgs/String; the last one is kept.")
    instruction_qos: str = _parameter("reliable, transient_local, depth=1", "transient_local: latched.")
    action_form: str = _parameter(
        "array", "array: Float64MultiArray; twist: TwistStamped; trajectory: JointTrajectory."
    )
    action_topic: str = _parameter("~/action", "Where actions go.")
    gripper_topic: str = _parameter("~/gripper", "std_msgs/Float64, beside a twist or a trajectory.")
    action_qos: str = _parameter("reliable, depth=10", "reliable serves best_effort receivers too.")
    joint_names: tuple[str, ...] = _parameter((), "For a trajectory, in the declaration's order.")
    start_pose: tuple[float, ...] = _parameter((), "The pose at rest, for a declaration that needs one.")
    autostart: bool = _parameter(False, "Configure and activate by itself; end if that fails.")
    exit_on_error: bool = _parameter(
        False, "End the process, for a supervisor to start again, once finalised by an error."
    )

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate) or self.rate < 0:
            raise UsageError(f"rate is {self.rate:g}, expected actions a second, or 0 for the robot's own")
        if not math.isfinite(self.deadline_ms) or self.deadline_ms < 0:
            raise UsageError(f"deadline_ms is {self.deadline_ms:g}, expected milliseconds, or 0")
        if self.image_transport not in ("raw", "compressed"):
            raise UsageError(f"image_transport is {self.image_transport!r}, expected raw or compressed")

    def check(self) -> None:
        """What must be said before the node can be configured."""
        if bool(self.artifact) == bool(self.server):
            raise UsageError("give one of artifact and server: ros2 param set <node> artifact /path, then configure")
        if not self.robot:
            raise UsageError("robot is not set: the path of the robot's declaration, docs/robot.md has an example")

    def qos(self, of: Of) -> Qos:
        parameter = f"{of}_qos"
        return Qos.parse(
            {"image": self.image_qos, "instruction": self.instruction_qos}.get(of, self.action_qos), parameter
        )

    def period_s(self, declared_s: float) -> float:
        """Seconds between two actions. UsageError for a rate at which a delta would be executed too soon."""
        if not self.rate:
            return declared_s
        if self.rate > (1 + 1e-9) / declared_s:
            raise UsageError(
                f"rate is {self.rate:g} and the robot declares an action each {1e3 * declared_s:g} ms, "
                f"{1 / declared_s:g} a second at most: lower rate, or period_ms in its file"
            )
        return 1 / self.rate


def described() -> Iterator[tuple[str, Value, str]]:
    """Name, default and description of each."""
    for each in dataclasses.fields(Parameters):
        default: Value = each.default  # type: ignore[assignment]  # every field has one
        yield each.name, default, each.metadata[HELP]
