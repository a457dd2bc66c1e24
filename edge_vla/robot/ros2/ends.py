"""What the topics of ROS have in common as camera and robot of `edge-vla act`, whether over DDS or over rosbridge.

    ros2:/camera/image_raw                  rosbridge://192.168.1.5:9090/camera/image_raw
    ros2:/arm/action?form=twist             rosbridge://192.168.1.5:9090/arm/action?form=twist&gripper=/arm/gripper

Knows neither rclpy nor roslibpy.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, urlsplit

from edge_vla.errors import FrameError, UsageError
from edge_vla.robot.cameras.newest import Newest
from edge_vla.robot.faces import CameraError, Command
from edge_vla.robot.ros2.forms import Channel, Form, form_of
from edge_vla.robot.ros2.freshness import LONGEST_S, AgeRule
from edge_vla.robot.ros2.images import Pixels, from_compressed
from edge_vla.robot.ros2.messages import NANO, Message, Origin, Stamp
from edge_vla.robot.units import Declaration

PORT: Final = 9090  # rosbridge's own
REMEMBERED: Final = 100  # pictures whose headers are kept
CAMERA_OPTIONS: Final = ("transport", "qos", "unstamped")
ROBOT_OPTIONS: Final = ("form", "gripper", "joints", "qos")
SCHEMES: Final = ("ros2:", "rosbridge://", "rosbridges://")


@dataclass(frozen=True)
class Address:
    """A topic, and where it is: `host` empty for DDS."""

    text: str
    topic: str
    options: dict[str, str] = field(default_factory=dict)
    host: str = ""
    port: int = PORT
    tls: bool = False

    @staticmethod
    def parse(text: str, flag: str, known: tuple[str, ...]) -> Address:
        """UsageError names the flag that gave it."""
        expected = f"expected ros2:/TOPIC or rosbridge://HOST:{PORT}/TOPIC, then ?OPTION=… of {', '.join(known)}"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{flag} {text}: {error}; {expected}") from error
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        remote = parts.scheme in ("rosbridge", "rosbridges")
        fits = (bool(parts.hostname) if remote else parts.scheme == "ros2" and not parts.netloc) and not parts.fragment
        if not fits or len(parts.path) < 2 or not parts.path.startswith("/") or set(options) - set(known):
            raise UsageError(f"{flag} {text}: {expected}")
        return Address(text, parts.path, options, parts.hostname or "", port or PORT, tls=parts.scheme == "rosbridges")

    @property
    def compressed(self) -> bool:
        """UsageError for a transport that is not known."""
        transport = self.options.get("transport", "compressed" if self.topic.endswith("/compressed") else "raw")
        if transport not in ("raw", "compressed"):
            raise UsageError(f"--camera {self.text}: transport is raw or compressed")
        return transport == "compressed"

    @property
    def rule(self) -> AgeRule:
        """The loop has the robot's own bound; here only what another clock stamped is refused."""
        return AgeRule(LONGEST_S, unstamped=self.options.get("unstamped", "") in ("1", "true"))

    def form(self, robot: Declaration) -> Form:
        """UsageError for one that does not fit the robot."""
        joints = tuple(filter(None, self.options.get("joints", "").split(",")))
        return form_of(self.options.get("form", "array"), robot, joints)

    def topic_of(self, channel: Channel) -> str:
        return self.topic if channel.role == "action" else self.options.get("gripper", f"{self.topic}/gripper")


class Origins:
    """The header of each picture, by when it was taken: an action carries its picture's stamp out again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = OrderedDict[float, Origin]()

    def add(self, taken: float, origin: Origin) -> None:
        with self._lock:
            self._kept[taken] = origin
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)

    def of(self, taken: float, ros_ns: int) -> Origin:
        """For a picture that came by no topic: its time, in ROS's."""
        with self._lock:
            known = self._kept.get(taken)
        return known or Origin(Stamp.of(max(0, ros_ns - round((time.monotonic() - taken) * NANO))), "")


ORIGINS: Final = Origins()


class MessageCamera(Newest):
    """A `Camera` whose pictures come as messages. `heard` from the middleware's thread."""

    def __init__(self, address: Address, ros_now: Callable[[], int]) -> None:
        super().__init__(address.text, self._decoded)
        self._rule, self._ros_now = address.rule, ros_now

    def heard(self, origin: Origin, content: bytes | Callable[[], Pixels]) -> None:
        """A file's bytes, or what reads a raw image. One that cannot be dated is no picture."""
        now = time.monotonic()
        age = self._rule.age(origin.stamp.nanoseconds, self._ros_now(), now, now)
        if age.stale:
            self.fail(CameraError("silent", f"{self.name}: {age.stale}"))
            return
        try:
            picture = content if isinstance(content, bytes) else content()
        except FrameError as error:
            self.fail(CameraError("unreadable", f"{self.name}: {error}"))
            return
        taken = now - age.seconds
        ORIGINS.add(taken, origin)
        self.put(picture, taken)

    def _decoded(self, data: bytes) -> Pixels:
        try:
            return from_compressed(data, "")
        except FrameError as error:
            raise CameraError("unreadable", f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Outgoing:
    """From a command to messages, the one that counts last."""

    form: Form
    ros_now: Callable[[], int]

    def messages(self, command: Command) -> list[tuple[Channel, Message]]:
        now = self.ros_now()
        if command.taken is None:
            origin, age = Origin(Stamp.of(now), "", rest=True), 0.0
        else:
            origin, age = ORIGINS.of(command.taken, now), time.monotonic() - command.taken
        return list(zip(self.form.channels, self.form.messages(command.values, origin, age), strict=True))
