"""From what a policy asks to what a robot may do: every dimension inside its limits, every change flagged and counted.

Pure: no clock, no thread, no motor. Not a safety-rated function: it knows what was commanded, not where the robot is.
A dimension's limits never conflict (`axis.py` says why); a non-finite number is never clamped, it ends in a stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edge_vla.errors import NumericError, UsageError
from edge_vla.robot.axis import AxisLimits, AxisState, at_rest, fits, follow, slow_down
from edge_vla.robot.bounds import Percentiles, at_start, axis_limits
from edge_vla.robot.jaw import Jaw
from edge_vla.robot.units import Declaration, Floats

Cause = Literal["bounds", "step", "jerk", "braking", "workspace", "debounce"]
"""Why a value was changed: the limits that it broke itself; `braking` where it left too little way to come to rest
inside the bounds, `workspace` where the position would have left the box, `debounce` where too few actions agreed."""

Causes = tuple[Cause, ...]


@dataclass(frozen=True, eq=False)
class Limited:
    """What to send: `values` (dims,) float64 in the robot's units, beside what was `asked` for in the same units.

    `causes` has an entry for each dimension, empty where the value passed bit for bit.
    """

    values: Floats
    asked: Floats
    causes: tuple[Causes, ...]

    @property
    def clamped(self) -> bool:
        return any(self.causes)

    @property
    def by(self) -> Floats:
        """How much each value was changed, (dims,)."""
        return self.values - self.asked


@dataclass(frozen=True)
class Counters:
    """Since the limiter was made: actions asked for, those changed, non-finite ones, stops.

    `changes` are counted by dimension and cause; a value that broke two limits counts for both.
    """

    actions: int
    clamped: int
    non_finite: int
    stops: int
    changes: Mapping[tuple[int, Cause], int]


class NotFiniteError(NumericError):
    """An action with a NaN or an infinity. `stop` (dims,) is to be sent instead; the limiter is at rest already."""

    def __init__(self, message: str, stop: Floats) -> None:
        super().__init__(message)
        self.stop = stop


class Limiter:
    """One robot's. `start` when an episode begins, then `limit` for each action. Calls from one thread at a time."""

    def __init__(self, robot: Declaration, statistics: Percentiles | None = None) -> None:
        """`statistics`: those of the policy's data set, for bounds that are declared to be theirs."""
        self.robot = robot
        self._limits = axis_limits(robot, statistics)
        self._axes: dict[int, AxisLimits] = {}
        self._states: dict[int, AxisState] = {}
        self._before: dict[int, AxisState] = {}
        self._jaws: dict[int, Jaw] = {}
        if robot.gripper is not None and robot.robot.gripper is not None:
            grippers = [i for i in range(robot.dims) if i not in robot.moving]
            self._jaws = {i: Jaw(robot.robot.gripper, robot.gripper) for i in grippers}
        self._actions = self._clamped = self._non_finite = self._stops = 0
        self._changes = Counter[tuple[int, Cause]]()
        if not robot.needs_pose:
            self.start()

    @property
    def counters(self) -> Counters:
        return Counters(self._actions, self._clamped, self._non_finite, self._stops, dict(self._changes))

    @property
    def started(self) -> bool:
        """Whether it knows where the robot rests."""
        return len(self._states) == len(self._limits)

    @property
    def resting(self) -> bool:
        """Whether `hold` would send the same again and again."""
        return all(at_rest(state, self._axes[i]) for i, state in self._states.items())

    def start(self, pose: ArrayLike | None = None) -> None:
        """An episode begins, the robot at rest at `pose`: (dims,) in its units, the gripper's number not read.

        Needed where actions are absolute or the workspace is relative to the base; otherwise the limiter starts by
        itself. UsageError for a pose outside the limits.
        """
        given = None if pose is None else np.asarray(pose, dtype=np.float64)
        self._axes, self._states = at_start(self.robot, self._limits, given)
        for jaw in self._jaws.values():
            jaw.start()

    def convert(self, values: ArrayLike) -> Floats:
        """An action (dims,) in the robot's units. UsageError for another shape, or before the start."""
        self._need_start()
        return self.robot.to_robot(np.asarray(values, dtype=np.float64))

    def limit(self, values: ArrayLike) -> Limited:
        """An action (dims,) in the policy's units as the robot may take it. NotFiniteError for a NaN or an infinity."""
        asked = self.convert(values)
        self._actions += 1
        if not np.isfinite(asked).all():
            self._non_finite += 1
            raise NotFiniteError(f"the action {asked.tolist()} is not finite: send `stop` instead", self.stop().values)
        self._before = dict(self._states)
        found = asked.copy()
        causes: list[Causes] = [()] * self.robot.dims
        for i, state in self._states.items():
            target = float(asked[i])
            found[i] = follow(state, self._axes[i], target)
            if found[i] != target:
                causes[i] = _causes(state, self._axes[i], target)
            self._states[i] = state.after(float(found[i]))
        for i, jaw in self._jaws.items():
            found[i] = jaw.follow(float(asked[i]))
            if found[i] != asked[i]:
                causes[i] = ("debounce",) if jaw.low <= asked[i] <= jaw.high else ("bounds",)
        self._changes.update((i, cause) for i, each in enumerate(causes) for cause in each)
        self._clamped += any(causes)
        return Limited(found, asked, tuple(causes))

    def take_back(self) -> None:
        """The robot surely did not take the last action: positions are as before it. Once after each `limit`."""
        self._states = dict(self._before)
        for jaw in self._jaws.values():
            jaw.take_back()

    def hold(self) -> Limited:
        """The next action on the quickest way to rest inside all limits; the gripper stays as it is."""
        self._need_start()
        return self._unasked({i: slow_down(state, self._axes[i]) for i, state in self._states.items()})

    def stop(self) -> Limited:
        """Rest at once, whatever step and jerk are: no motion for deltas, the last pose else; the gripper stays."""
        self._need_start()
        self._stops += 1
        rest = {i: 0.0 if self.robot.delta else state.value for i, state in self._states.items()}
        self._states = {i: AxisState(rest[i], rest[i], state.position) for i, state in self._states.items()}
        return self._unasked(rest)

    def _unasked(self, axes: Mapping[int, float]) -> Limited:
        values = np.zeros(self.robot.dims)
        for i, value in axes.items():
            values[i] = value
            self._states[i] = self._states[i].after(value)
        for i, jaw in self._jaws.items():
            values[i] = jaw.keep()
        return Limited(values, values.copy(), ((),) * self.robot.dims)

    def _need_start(self) -> None:
        if not self.started:
            raise UsageError(f"{self.robot.name} has not started: call start(pose) with the pose at which it rests")


def _causes(state: AxisState, limits: AxisLimits, target: float) -> Causes:
    """The limits that a value which may not follow breaks."""
    if fits(state, limits, target):
        return ("workspace",)
    change = target - state.value
    broken: list[Cause] = []
    if not limits.low <= target <= limits.high:
        broken.append("bounds")
    if abs(change) > limits.step:
        broken.append("step")
    if abs(change - state.rate) > limits.jerk:
        broken.append("jerk")
    return tuple(broken) or ("braking",)
