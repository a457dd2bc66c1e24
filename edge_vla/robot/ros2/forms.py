"""The three forms in which an action leaves: an array, a twist with a gripper, a joint trajectory.

Each fits some robots and no others: `form_of` refuses, by the robot's declaration, what a motor would misread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import UsageError
from edge_vla.robot.ros2.messages import ARRAY, FLOAT, TRAJECTORY, TWIST, Message, Origin, array, trajectory, twist
from edge_vla.robot.units import GRIPPER, Declaration

Values = NDArray[np.float64]
Role = Literal["action", "gripper"]
FormName = Literal["array", "twist", "trajectory"]
FORMS: Final = get_args(FormName)
TWIST_UNITS: Final = ("m", "m", "m", "rad", "rad", "rad")


@dataclass(frozen=True)
class Channel:
    """A topic that a form publishes on; `role` says which of the node's topics."""

    role: Role
    type: str


class Form(Protocol):
    """Turns (dims,) values in the robot's units into one message for each of its channels, in their order."""

    @property
    def channels(self) -> tuple[Channel, ...]: ...

    def messages(self, values: Values, origin: Origin, age_s: float) -> tuple[Message, ...]:
        """`age_s`: seconds since the origin's stamp, by now."""


@dataclass(frozen=True)
class Array:
    """Every number, in the order and the units of the declaration."""

    labels: tuple[str, ...]

    @property
    def channels(self) -> tuple[Channel, ...]:
        return (Channel("action", ARRAY),)

    def messages(self, values: Values, origin: Origin, age_s: float) -> tuple[Message, ...]:  # noqa: ARG002
        return (array(values, self.labels, origin),)


@dataclass(frozen=True)
class Twist:
    """A displacement over one period, as a velocity. The gripper goes first, so that it is there when the arm moves."""

    period_s: float
    gripper: int | None

    @property
    def channels(self) -> tuple[Channel, ...]:
        arm = Channel("action", TWIST)
        return (arm,) if self.gripper is None else (Channel("gripper", FLOAT), arm)

    def messages(self, values: Values, origin: Origin, age_s: float) -> tuple[Message, ...]:  # noqa: ARG002
        moving = _without(values, self.gripper) / self.period_s
        arm = twist(moving[:3].tolist(), moving[3:].tolist(), origin)
        return (arm,) if self.gripper is None else ({"data": float(values[self.gripper])}, arm)


@dataclass(frozen=True)
class Trajectory:
    """Joint positions, to be reached one period from now. Its stamp is the frame's, so that time has passed already."""

    period_s: float
    names: tuple[str, ...]
    gripper: int | None  # None where the gripper is one of the joints, or there is none

    @property
    def channels(self) -> tuple[Channel, ...]:
        arm = Channel("action", TRAJECTORY)
        return (arm,) if self.gripper is None else (Channel("gripper", FLOAT), arm)

    def messages(self, values: Values, origin: Origin, age_s: float) -> tuple[Message, ...]:
        # A controller drops a trajectory whose end has passed, so the time until now is part of the way.
        reach = max(age_s, 0.0) + self.period_s
        arm = trajectory(self.names, _without(values, self.gripper).tolist(), origin, reach)
        return (arm,) if self.gripper is None else ({"data": float(values[self.gripper])}, arm)


def form_of(name: str, robot: Declaration, joint_names: Sequence[str] = ()) -> Form:
    """UsageError for a form that does not exist, or does not fit the robot."""
    units = robot.robot.units
    grippers = [i for i, unit in enumerate(units) if unit == GRIPPER]
    period = robot.period_ms / 1e3
    if name == "array":
        return Array(tuple(f"{i}:{unit}" for i, unit in enumerate(units)))
    if name not in FORMS:
        raise UsageError(f"action_form is {name!r}, expected {', '.join(FORMS)}")
    if len(grippers) > 1:
        raise UsageError(f"{robot.name} has {len(grippers)} grippers: only action_form array has a place for them")
    gripper = grippers[0] if grippers else None
    if name == "twist":
        moving = tuple(unit for unit in units if unit != GRIPPER)
        if not robot.delta or moving != TWIST_UNITS:
            raise UsageError(
                f"a twist needs deltas in {', '.join(TWIST_UNITS)}, and {robot.name} declares {robot.actions} actions "
                f"in {', '.join(moving)}: set robot.units in its file to metres and radians, or use action_form array"
            )
        return Twist(period, gripper)
    return _trajectory(robot, tuple(joint_names), gripper, period)


def _trajectory(robot: Declaration, names: tuple[str, ...], gripper: int | None, period: float) -> Trajectory:
    units = robot.robot.units
    if robot.delta or not set(units) <= {"m", "rad", GRIPPER}:
        raise UsageError(
            f"a joint trajectory needs joint positions in m or rad, and {robot.name} declares {robot.actions} actions "
            f"in {', '.join(units)}: declare them, or use action_form array or twist"
        )
    if len(set(names)) != len(names) or len(names) not in (robot.dims, len(robot.moving)):
        raise UsageError(
            f"joint_names has {len(names)} names, expected {len(robot.moving)} different ones, in the declaration's "
            f"order (or {robot.dims} with the gripper's joint)"
        )
    return Trajectory(period, names, None if len(names) == robot.dims else gripper)


def _without(values: Values, dimension: int | None) -> Values:
    return values if dimension is None else np.delete(values, dimension)
