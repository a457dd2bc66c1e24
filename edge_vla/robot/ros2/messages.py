"""Actions and reports as ROS messages, field by field, in plain Python: what DDS and rosbridge both send.

A `Message` has the field names of its .msg file; `typed.py` turns it into the real class, rosbridge sends it as JSON.
Knows no rclpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Message = dict[str, object]
NANO: Final = 1_000_000_000
ARRAY: Final = "std_msgs/msg/Float64MultiArray"
FLOAT: Final = "std_msgs/msg/Float64"
TWIST: Final = "geometry_msgs/msg/TwistStamped"
TRAJECTORY: Final = "trajectory_msgs/msg/JointTrajectory"
DIAGNOSTICS: Final = "diagnostic_msgs/msg/DiagnosticArray"
TEXT: Final = "std_msgs/msg/String"


@dataclass(frozen=True, order=True)
class Stamp:
    """A `builtin_interfaces/Time`."""

    sec: int
    nanosec: int

    @staticmethod
    def of(nanoseconds: int) -> Stamp:
        return Stamp(*divmod(nanoseconds, NANO))

    @property
    def nanoseconds(self) -> int:
        return self.sec * NANO + self.nanosec

    def __str__(self) -> str:
        return f"{self.sec}.{self.nanosec:09d}"


@dataclass(frozen=True)
class Origin:
    """What an action was computed from: a frame, by its header; or, with `rest`, none, and when it was sent."""

    stamp: Stamp
    frame_id: str
    rest: bool = False


def header(origin: Origin) -> Message:
    return {"stamp": time(origin.stamp), "frame_id": origin.frame_id}


def time(stamp: Stamp) -> Message:
    return {"sec": stamp.sec, "nanosec": stamp.nanosec}


def duration(seconds: float) -> Message:
    """A `builtin_interfaces/Duration`, to the nanosecond."""
    return time(Stamp.of(round(seconds * NANO)))


def array(values: NDArray[np.float64], labels: Sequence[str], origin: Origin) -> Message:
    """A Float64MultiArray of (dims,) values. It has no header, so the first dimension's label carries it.

    "frame 12.000000034 camera": stamp and frame_id of the image. "rest 13.5…": no image; sent at that time. The second
    label names each number.
    """
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values and {len(labels)} labels")
    mark = f"{'rest' if origin.rest else 'frame'} {origin.stamp} {origin.frame_id}"
    dim = [
        {"label": mark, "size": 1, "stride": len(values)},
        {"label": ",".join(labels), "size": len(values), "stride": len(values)},
    ]
    return {"layout": {"dim": dim, "data_offset": 0}, "data": [float(value) for value in values]}


def origin_of(label: str) -> Origin:
    """What `array` wrote into its first label. ValueError for another label."""
    kind, _, rest = label.partition(" ")
    stamp, _, frame_id = rest.partition(" ")
    sec, _, nanosec = stamp.partition(".")
    if kind not in ("frame", "rest") or len(nanosec) != 9:
        raise ValueError(f"the label {label!r} is not one of edge-vla's")
    return Origin(Stamp(int(sec), int(nanosec)), frame_id, kind == "rest")


def twist(linear: Sequence[float], angular: Sequence[float], origin: Origin) -> Message:
    """A TwistStamped: m/s and rad/s."""
    parts = {
        name: dict(zip("xyz", map(float, part), strict=True))
        for name, part in (("linear", linear), ("angular", angular))
    }
    return {"header": header(origin), "twist": parts}


def trajectory(names: Sequence[str], positions: Sequence[float], origin: Origin, reach_s: float) -> Message:
    """A JointTrajectory of one point, to be reached `reach_s` after the origin's stamp."""
    if len(names) != len(positions):
        raise ValueError(f"{len(positions)} positions and {len(names)} joint names")
    point = {"positions": [float(value) for value in positions], "time_from_start": duration(reach_s)}
    return {"header": header(origin), "joint_names": list(names), "points": [point]}


@dataclass(frozen=True)
class Status:
    """One line of diagnostics. `level`: 0 fine, 1 a warning, 2 an error."""

    name: str
    level: int
    message: str
    values: Mapping[str, str]


def diagnostics(statuses: Sequence[Status], stamp: Stamp, hardware_id: str) -> Message:
    """A DiagnosticArray."""
    return {
        "header": {"stamp": time(stamp), "frame_id": ""},
        "status": [
            {
                "level": bytes([each.level]),
                "name": each.name,
                "message": each.message,
                "hardware_id": hardware_id,
                "values": [{"key": key, "value": value} for key, value in each.values.items()],
            }
            for each in statuses
        ],
    }
