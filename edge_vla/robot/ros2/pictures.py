"""From an image message, of either type, to what it is from and how to read it. Knows the fields, not the classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from edge_vla.robot.ros2.images import Pixels, RawImage, from_compressed, from_raw
from edge_vla.robot.ros2.messages import Origin, Stamp

IMAGE_TYPES: Final = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}


class TimeFields(Protocol):
    sec: int
    nanosec: int


class HeaderFields(Protocol):
    stamp: TimeFields
    frame_id: str


class ImageFields(Protocol):
    header: HeaderFields
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes


class CompressedFields(Protocol):
    header: HeaderFields
    format: str
    data: bytes


def raw(message: ImageFields) -> tuple[Origin, Callable[[], Pixels]]:
    """Where a `sensor_msgs/Image` is from, and what reads it, later and in another thread."""
    image = RawImage(
        message.height, message.width, message.encoding, bool(message.is_bigendian), message.step, message.data
    )
    return _origin(message.header), partial(from_raw, image)


def compressed(message: CompressedFields) -> tuple[Origin, Callable[[], Pixels]]:
    """The same of a `sensor_msgs/CompressedImage`."""
    data, form = message.data, message.format
    return _origin(message.header), lambda: from_compressed(bytes(data), form)


def _origin(header: HeaderFields) -> Origin:
    return Origin(Stamp(header.stamp.sec, header.stamp.nanosec), header.frame_id)
