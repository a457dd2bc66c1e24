"""From a robot's declaration to the limits of each axis, and to where it stands when an episode begins.

Every limit comes from the declaration or from the policy's data set; one that cannot be kept is refused here.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import UsageError
from edge_vla.robot.axis import AxisLimits, AxisState
from edge_vla.robot.units import Declaration, Floats, too_far

FINEST: Final = 1e-5  # of the bounds: a smaller step or jerk is lost among roundings


class Percentiles(Protocol):
    """A data set's statistics as `edge_vla.openvla.ActionStatistics` has them, (dims,) each, in the policy's units."""

    @property
    def q01(self) -> Floats: ...

    @property
    def q99(self) -> Floats: ...

    @property
    def mask(self) -> NDArray[np.bool_]: ...


def axis_limits(robot: Declaration, statistics: Percentiles | None) -> dict[int, AxisLimits]:
    """Limits by moving dimension, a workspace aside. UsageError for limits under which the robot could not rest."""
    lows, highs = _bounds(robot, statistics)
    found = {}
    for k, i in enumerate(robot.moving):
        low, high = float(lows[k]), float(highs[k])
        if not low <= high:
            raise UsageError(f"dimension {i} has bounds {low:g} to {high:g}: the lower one comes first")
        if robot.delta and not low <= 0 <= high:
            raise UsageError(f"dimension {i} has bounds {low:g} to {high:g}, which leave no way to rest: include 0")
        if too_far(robot, i, max(-low, high)):
            raise UsageError(
                f"dimension {i} may move by {max(-low, high):g} {robot.robot.units[i]} in one action: "
                "check policy.units against the data set, and limits against robot.units"
            )
        axis = AxisLimits(low, high, delta=robot.delta)
        for name in ("step", "jerk"):
            if (declared := getattr(robot.limits, name)) is not None:
                if declared[k] < FINEST * max(-low, high):
                    raise UsageError(
                        f"limits.{name} of dimension {i} is {declared[k]:g}, lost beside bounds {low:g} to {high:g}"
                    )
                axis = dataclasses.replace(axis, **{name: declared[k]})
        found[i] = axis
    return found


def at_start(
    robot: Declaration, axes: dict[int, AxisLimits], pose: Floats | None
) -> tuple[dict[int, AxisLimits], dict[int, AxisState]]:
    """Limits with the workspace in place, and the state of each axis, at rest at `pose` (dims,) in the robot's units.

    UsageError for a pose that is needed and not given, or lies outside.
    """
    if pose is None and robot.needs_pose:
        raise UsageError(
            f"{robot.name} needs its pose at the start: start([...]) with {robot.dims} numbers in its units"
        )
    if pose is not None and (pose.shape != (robot.dims,) or not np.isfinite(pose[list(robot.moving)]).all()):
        raise UsageError(f"the pose at the start must be {robot.dims} finite numbers, got {pose.tolist()}")
    placed, states = {}, {}
    for i, axis in axes.items():
        here = 0.0 if pose is None or not robot.needs_pose else float(pose[i])
        box = _box(robot, i)
        if robot.delta:
            low, high = box or (here, here)
            placed[i] = dataclasses.replace(axis, box=box)
            states[i] = AxisState(0.0, 0.0, here)
        else:
            if box is not None:
                origin = here if robot.workspace is not None and robot.workspace.relative_to == "start" else 0.0
                axis = dataclasses.replace(
                    axis, low=max(axis.low, box[0] + origin), high=min(axis.high, box[1] + origin)
                )
            low, high = axis.low, axis.high
            placed[i], states[i] = axis, AxisState(here, here)
        if not low <= here <= high:
            raise UsageError(
                f"dimension {i} starts at {here:g}, outside {low:g} to {high:g}: move the robot inside first"
            )
    return placed, states


def _bounds(robot: Declaration, statistics: Percentiles | None) -> tuple[Floats, Floats]:
    """Of the moving dimensions, in the robot's units."""
    moving = list(robot.moving)
    if robot.limits.low is not None and robot.limits.high is not None:
        return np.array(robot.limits.low), np.array(robot.limits.high)
    if statistics is None:
        raise UsageError(
            'limits.bounds is "statistics": pass those of the policy\'s data set, '
            "such as policy.config.statistics[unnorm_key], or declare low and high"
        )
    if statistics.q01.shape != (robot.dims,):
        raise UsageError(f"the data set's actions have {len(statistics.q01)} dimensions, {robot.name} has {robot.dims}")
    if not statistics.mask[moving].all():
        free = [i for i in moving if not statistics.mask[i]]
        raise UsageError(
            f"the data set does not normalise dimension {free[0]}, so it has no bounds: declare low and high"
        )
    return robot.to_robot(statistics.q01)[moving], robot.to_robot(statistics.q99)[moving]


def _box(robot: Declaration, dimension: int) -> tuple[float, float] | None:
    if robot.workspace is None or dimension not in robot.lengths:
        return None
    k = robot.lengths.index(dimension)
    return robot.workspace.low[k], robot.workspace.high[k]
