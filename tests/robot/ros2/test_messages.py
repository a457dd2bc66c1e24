"""Actions as messages: stamps, labels and layouts, for any values; and which form fits which robot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import UsageError
from edge_vla.robot.ros2.forms import Trajectory, form_of
from edge_vla.robot.ros2.messages import Origin, Stamp, Status, array, diagnostics, origin_of, trajectory, twist
from edge_vla.robot.units import Bounds, Declaration, Grip, Jaws, Lapse, Meaning, Unit

STAMPS = st.builds(Stamp, st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1))
ORIGINS = st.builds(Origin, STAMPS, st.text(max_size=20), st.booleans())
FLOATS = st.floats(-1e6, 1e6)
SIX: tuple[Unit, ...] = ("m", "m", "m", "rad", "rad", "rad")


def robot(units: tuple[Unit, ...] = (*SIX, "gripper"), **changes: Any) -> Declaration:
    meaning = Meaning(units, Jaws(1.0, 0.0) if "gripper" in units else None)
    moving = sum(unit != "gripper" for unit in units)
    settings: dict[str, Any] = {
        "name": "arm",
        "actions": "delta",
        "period_ms": 200.0,
        "policy": meaning,
        "robot": meaning,
        "limits": Bounds(low=(-0.5,) * moving, high=(0.5,) * moving),
        "watchdog": Lapse("hold"),
        "gripper": Grip("open") if "gripper" in units else None,
    }
    return Declaration(**(settings | changes))


@given(STAMPS)
def test_a_stamp_survives_nanoseconds(stamp: Stamp) -> None:
    assert Stamp.of(stamp.nanoseconds) == stamp


@given(st.lists(FLOATS, min_size=1, max_size=14), ORIGINS)
def test_an_array_carries_its_values_bit_for_bit_and_its_origin(values: list[float], origin: Origin) -> None:
    message: Any = array(np.array(values), [str(i) for i in range(len(values))], origin)
    assert message["data"] == values
    first, second = message["layout"]["dim"]
    assert origin_of(first["label"]) == origin
    assert second["label"].split(",") == [str(i) for i in range(len(values))]
    # std_msgs/MultiArrayLayout: dim_stride[0] is the size of all, a dimension's stride its size times the next one's.
    assert first["size"] * second["size"] == len(values) == first["stride"] == second["stride"]
    assert message["layout"]["data_offset"] == 0


@pytest.mark.parametrize("label", ["", "frame", "frame 12 camera", "image 1.000000000 x", "frame 1.5 x", "rest x.y z"])
def test_a_label_of_somebody_else_s_is_refused(label: str) -> None:
    with pytest.raises(ValueError):
        origin_of(label)


@given(st.lists(st.floats(-0.5, 0.5), min_size=7, max_size=7), STAMPS)
def test_a_twist_covers_the_displacement_in_one_period(values: list[float], stamp: Stamp) -> None:
    form = form_of("twist", robot())
    gripper, arm = (dict[str, Any](message) for message in form.messages(np.array(values), Origin(stamp, "c"), 0.1))
    assert [channel.role for channel in form.channels] == ["gripper", "action"]
    assert gripper["data"] == values[6]
    moved = [0.2 * arm["twist"][part][axis] for part in ("linear", "angular") for axis in "xyz"]
    np.testing.assert_allclose(moved, values[:6], rtol=1e-15, atol=1e-300)
    assert arm["header"] == {"stamp": {"sec": stamp.sec, "nanosec": stamp.nanosec}, "frame_id": "c"}


@given(st.lists(FLOATS, min_size=3, max_size=3), STAMPS, st.floats(0, 5))
def test_a_trajectory_s_end_lies_one_period_from_now(values: list[float], stamp: Stamp, age: float) -> None:
    form = form_of("trajectory", robot(("rad", "m", "rad"), actions="absolute"), ["a", "b", "c"])
    (message,) = (dict[str, Any](each) for each in form.messages(np.array(values), Origin(stamp, ""), age))
    (point,) = message["points"]
    assert message["joint_names"] == ["a", "b", "c"]
    assert point["positions"] == values
    end = point["time_from_start"]
    assert 0 <= end["nanosec"] < 10**9
    assert math.isclose(end["sec"] + end["nanosec"] / 1e9, age + 0.2, abs_tol=1e-9)


def test_a_gripper_is_a_joint_or_beside_them() -> None:
    arm = robot(("rad", "rad", "gripper"), actions="absolute")
    values = np.array([0.1, 0.2, 1.0])
    beside, joints = form_of("trajectory", arm, ["a", "b"]).messages(values, Origin(Stamp(1, 2), ""), 0.0)
    assert beside == {"data": 1.0}
    assert joints["joint_names"] == ["a", "b"]
    (whole,) = form_of("trajectory", arm, ["a", "b", "finger"]).messages(values, Origin(Stamp(1, 2), ""), 0.0)
    assert dict[str, Any](whole)["points"][0]["positions"] == [0.1, 0.2, 1.0]


@pytest.mark.parametrize(
    ("form", "arm", "names", "message"),
    [
        ("array2", robot(), (), r"action_form is 'array2', expected array, twist, trajectory"),
        ("twist", robot(("mm", *SIX[1:], "gripper")), (), r"a twist needs deltas in m, m, m, rad, rad, rad.*metres"),
        ("twist", robot(actions="absolute"), (), r"declares absolute actions"),
        ("twist", robot(SIX[:5]), (), r"a twist needs deltas"),
        ("twist", robot((*SIX, "gripper", "gripper")), (), r"2 grippers: only action_form array"),
        ("trajectory", robot(), (), r"joint positions in m or rad, and arm declares delta actions"),
        ("trajectory", robot(("deg", "rad"), actions="absolute"), ("a", "b"), r"absolute actions in deg, rad"),
        ("trajectory", robot(("rad", "rad"), actions="absolute"), (), r"joint_names has 0 names, expected 2"),
        ("trajectory", robot(("rad", "rad"), actions="absolute"), ("a", "a"), r"2 different ones"),
    ],
)
def test_a_form_that_a_motor_would_misread_is_refused(
    form: str, arm: Declaration, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        form_of(form, arm, names)


def test_an_array_takes_any_robot() -> None:
    form = form_of("array", robot((*SIX, "gripper", "gripper")))
    (message,) = form.messages(np.arange(8.0), Origin(Stamp(3, 4), "camera link"), 0.0)
    label = dict[str, Any](message)["layout"]["dim"][1]["label"]
    assert label == "0:m,1:m,2:m,3:rad,4:rad,5:rad,6:gripper,7:gripper"


def test_a_clock_that_ran_backwards_gives_no_negative_time() -> None:
    form = Trajectory(0.2, ("a",), None)
    (message,) = form.messages(np.zeros(1), Origin(Stamp(5, 0), ""), -3.0)
    assert dict[str, Any](message)["points"][0]["time_from_start"] == {"sec": 0, "nanosec": 200_000_000}


def test_lengths_that_differ_are_ours_to_notice() -> None:
    origin = Origin(Stamp(0, 0), "")
    with pytest.raises(ValueError, match=r"2 values and 1 labels"):
        array(np.zeros(2), ["a"], origin)
    with pytest.raises(ValueError, match=r"2 positions and 1 joint"):
        trajectory(["a"], [1.0, 2.0], origin, 0.1)
    with pytest.raises(ValueError):
        twist([1.0, 2.0], [1.0, 2.0, 3.0], origin)


def test_diagnostics_have_the_level_as_the_byte_that_ros_wants() -> None:
    message: Any = diagnostics([Status("a", 2, "b", {"k": "v"})], Stamp(7, 8), "arm")
    (status,) = message["status"]
    assert status["level"] == b"\x02"
    assert status["values"] == [{"key": "k", "value": "v"}]
    assert message["header"]["stamp"] == {"sec": 7, "nanosec": 8}
