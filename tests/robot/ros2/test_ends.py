"""Topics as camera and robot, without any middleware: addresses, dates, and a picture's stamp that an action keeps."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_vla.errors import FrameError, UsageError
from edge_vla.robot.faces import CameraError, Command
from edge_vla.robot.ros2.ends import (
    CAMERA_OPTIONS,
    REMEMBERED,
    ROBOT_OPTIONS,
    Address,
    MessageCamera,
    Origins,
    Outgoing,
)
from edge_vla.robot.ros2.forms import Channel, form_of
from edge_vla.robot.ros2.messages import NANO, Origin, Stamp, origin_of
from edge_vla.robot.ros2.opening import of_ros
from tests.robot.robots import LINE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ros2:/camera/image_raw", Address("", "/camera/image_raw")),
        ("ros2:/a?qos=reliable,depth=1", Address("", "/a", {"qos": "reliable,depth=1"})),
        ("rosbridge://10.0.0.5/a/b", Address("", "/a/b", host="10.0.0.5")),
        ("rosbridges://[::1]:443/a", Address("", "/a", host="::1", port=443, tls=True)),
    ],
)
def test_an_address_says_topic_and_place(text: str, expected: Address) -> None:
    assert of_ros(text)
    found = Address.parse(text, "--camera", CAMERA_OPTIONS)
    assert (found.topic, found.options, found.host, found.port, found.tls) == (
        expected.topic,
        expected.options,
        expected.host,
        expected.port,
        expected.tls,
    )


@pytest.mark.parametrize(
    "text",
    [
        "ros2:",
        "ros2:camera",
        "ros2://camera/x",
        "ros2:/a?colour=red",
        "ros2:/a#b",
        "rosbridge:///a",
        "rosbridge://h:port/a",
        "rosbridge://h",
        "rosbridge://h:9090/",
    ],
)
def test_what_is_no_address_names_the_flag_and_the_options(text: str) -> None:
    with pytest.raises(UsageError, match=r"--to .*expected ros2:/TOPIC or rosbridge://HOST:9090/TOPIC"):
        Address.parse(text, "--to", ROBOT_OPTIONS)


def test_options_have_meanings() -> None:
    assert not Address.parse("ros2:/image_raw", "--camera", CAMERA_OPTIONS).compressed
    assert Address.parse("ros2:/image_raw/compressed", "--camera", CAMERA_OPTIONS).compressed
    assert Address.parse("ros2:/x?transport=compressed&unstamped=1", "--camera", CAMERA_OPTIONS).compressed
    with pytest.raises(UsageError, match=r"transport is raw or compressed"):
        _ = Address.parse("ros2:/x?transport=theora", "--camera", CAMERA_OPTIONS).compressed
    arm = Address.parse("ros2:/arm?gripper=/g", "--to", ROBOT_OPTIONS)
    assert arm.topic_of(Channel("gripper", "x")) == "/g"
    assert Address.parse("ros2:/arm", "--to", ROBOT_OPTIONS).topic_of(Channel("gripper", "x")) == "/arm/gripper"
    with pytest.raises(UsageError, match=r"action_form is 'dance'"):
        Address.parse("ros2:/arm?form=dance", "--to", ROBOT_OPTIONS).form(LINE)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=3 * REMEMBERED, unique=True))
def test_the_last_pictures_headers_are_remembered_exactly(times: list[float]) -> None:
    origins = Origins()
    for number, taken in enumerate(times):
        origins.add(taken, Origin(Stamp(number, 0), "c"))
    for number, taken in list(enumerate(times))[-REMEMBERED:]:
        assert origins.of(taken, 0) == Origin(Stamp(number, 0), "c")


def test_a_picture_that_came_by_no_topic_is_dated_in_ros_time() -> None:
    ros_ns = 1_000 * NANO
    found = Origins().of(time.monotonic() - 2.0, ros_ns)
    assert abs(found.stamp.nanoseconds - 998 * NANO) < NANO / 10
    assert found.frame_id == ""


class Clock:
    def __init__(self) -> None:
        self.ns = 1_700_000_000 * NANO

    def __call__(self) -> int:
        return self.ns


def camera(text: str = "ros2:/image") -> tuple[MessageCamera, Clock]:
    clock = Clock()
    return MessageCamera(Address.parse(text, "--camera", CAMERA_OPTIONS), clock), clock


PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


def test_a_picture_is_as_old_as_its_stamp_says_and_its_action_carries_the_stamp() -> None:
    eye, clock = camera()
    origin = Origin(Stamp.of(clock.ns - 150_000_000), "camera")
    eye.heard(origin, lambda: PIXELS)
    picture = eye.newest(0, time.monotonic())
    assert 0.15 <= time.monotonic() - picture.taken < 0.25
    np.testing.assert_array_equal(picture.image, PIXELS)
    command = Command("action", 1, np.array([0.01, 1.0]), picture.taken, time.monotonic() + 1)
    ((channel, message),) = Outgoing(form_of("array", LINE), clock).messages(command)
    assert channel.role == "action"
    found: Any = message
    assert origin_of(found["layout"]["dim"][0]["label"]) == origin
    ((_, rest),) = Outgoing(form_of("array", LINE), clock).messages(
        Command("stop", 2, np.zeros(2), None, time.monotonic() + 1)
    )
    found = rest
    assert origin_of(found["layout"]["dim"][0]["label"]) == Origin(Stamp.of(clock.ns), "", rest=True)


@pytest.mark.parametrize(
    ("stamp_s", "options", "message"),
    [
        (0, "", r"the image has no stamp"),
        (1_700_000_004, "", r"4\.000 s ahead of ROS time"),
        (12, "", r"before ROS time: let both machines' clocks agree"),
    ],
)
def test_a_picture_that_cannot_be_dated_is_none(stamp_s: int, options: str, message: str) -> None:
    eye, _ = camera(f"ros2:/image{options}")
    eye.heard(Origin(Stamp(stamp_s, 0), ""), lambda: PIXELS)
    with pytest.raises(CameraError, match=message) as caught:
        eye.newest(0, time.monotonic())
    assert caught.value.fault == "silent"


def test_without_a_stamp_it_is_taken_when_it_came_if_that_is_allowed() -> None:
    eye, _ = camera("ros2:/image?unstamped=true")
    eye.heard(Origin(Stamp(0, 0), ""), lambda: PIXELS)
    assert time.monotonic() - eye.newest(0, time.monotonic()).taken < 0.1


def test_what_is_no_picture_is_unreadable_until_the_next_one() -> None:
    eye, clock = camera()
    origin = Origin(Stamp.of(clock.ns), "")

    def grey() -> Any:
        raise FrameError("the image is mono8")

    eye.heard(origin, grey)
    with pytest.raises(CameraError, match=r"the image is mono8") as caught:
        eye.newest(0, time.monotonic())
    assert caught.value.fault == "unreadable"
    eye.heard(origin, b"\xff\xd8\xffnot a jpeg")
    with pytest.raises(CameraError, match=r"a JPEG that cannot be read"):
        eye.newest(0, time.monotonic())
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    eye.heard(origin, file.getvalue())
    np.testing.assert_array_equal(eye.newest(0, time.monotonic()).image, PIXELS)
