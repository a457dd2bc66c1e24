"""A `Message` of plain Python as the real ROS class, by the class's own list of fields.

Needs the message packages that it is asked for, imported by name; the class checks every value's type.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edge_vla.errors import BackendError
from edge_vla.robot.ros2.messages import Message


def message_class(name: str) -> Any:
    """The class of "std_msgs/msg/String" or "std_msgs/String". BackendError where its package is not installed."""
    package, _, rest = name.partition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), rest.rpartition("/")[2])
    except ImportError as error:
        remedy = (
            f"sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}, and source /opt/ros/$ROS_DISTRO/setup.bash"
        )
        raise BackendError(f"{name} needs the package {package}: {remedy}") from error


def build(name: str, message: Message) -> Any:
    """A message of that type. AssertionError or AttributeError, the class's own, for a field that does not fit."""
    found = message_class(name)()
    fields: Mapping[str, str] = found.get_fields_and_field_types()
    for field, value in message.items():
        setattr(found, field, _value(fields[field], value))
    return found


def _value(kind: str, value: object) -> object:
    """`kind` as rosidl writes it: "std_msgs/Header", "sequence<std_msgs/MultiArrayDimension>", "double"."""
    if isinstance(value, dict):
        return build(kind, value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        element = kind.removeprefix("sequence<").partition(">")[0].partition(",")[0]
        return [build(element, each) for each in value]
    return value
