"""What a robot declares of itself before a policy may move it: units, gripper, limits, and what a late action means.

Read from a small TOML file. Refuses to guess: a robot whose file does not say its units and its gripper's values does
not start. Knows no motor and no policy.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from edge_vla import typed_json
from edge_vla.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Floats = NDArray[np.float64]
Unit = Literal["m", "mm", "rad", "deg", "gripper"]
Jaw = Literal["open", "closed"]

GRIPPER: Final = "gripper"
LENGTHS: Final = {"m": 1.0, "mm": 1e-3}
ANGLES: Final = {"rad": 1.0, "deg": math.pi / 180}
MOST: Final = {
    **dict.fromkeys(LENGTHS, 1.0),
    **dict.fromkeys(ANGLES, math.pi),
}  # m or rad of one delta: more is a unit mistaken
LEAST_MS, MOST_MS = 1.0, 3_600_000.0  # of a period, and of what is waited for: no thread can wait for 1e308
PERIODS: Final = 3.0  # after which a missing action counts as missing, unless declared
AGE_PERIODS: Final = 2.0  # for which a picture may be acted on, unless declared
MISSING: Final = re.compile(r": \w+\.__init__\(\) missing \d+ required positional arguments?:")
UNITS_LINE: Final = 'units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]'
GRIPPER_LINE: Final = "gripper = { open = 1.0, closed = 0.0 }"


@dataclass(frozen=True)
class Jaws:
    """The numbers that mean open and closed: sign and range of a gripper in one."""

    open: float
    closed: float


@dataclass(frozen=True)
class Meaning:
    """What the numbers of an action mean: a unit for each dimension, and the gripper's values where there is one."""

    units: tuple[Unit, ...]
    gripper: Jaws | None = None


@dataclass(frozen=True)
class Grip:
    """`at_rest`: how the gripper is before the first action. `debounce`: actions that must agree before it moves."""

    at_rest: Jaw
    debounce: int = 1


@dataclass(frozen=True)
class Bounds:
    """Limits of each dimension but the gripper's, in the robot's units.

    Either `bounds = "statistics"`, the q01 and q99 of the policy's data set, or `low` and `high`. `step` is the most
    that an action may differ from the one before, `jerk` the most that this difference may change; None: no limit.
    """

    bounds: Literal["statistics"] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    step: tuple[float, ...] | None = None
    jerk: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Workspace:
    """A box for the position, one value for each length, in the robot's units.

    `relative_to` the pose at the `start` of an episode, or the robot's `base`, whose pose is then given at the start.
    `axes` says along whose axes an action moves: positions are sums of actions along the base's only.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    relative_to: Literal["start", "base"]
    axes: Literal["base", "tool"]


@dataclass(frozen=True)
class Lapse:
    """What a stale or missing action means.

    `hold` comes to rest inside the limits, `stop` at once. `after_ms` without a fresh action it is missing (None: three
    periods). `recover` fresh actions in a row end it; 0: only a reset does.
    """

    on_stale: Literal["hold", "stop"]
    after_ms: float | None = None
    recover: int = 0


@dataclass(frozen=True)
class Sight:
    """Which pictures an action may come from.

    `max_age_ms` when the action starts (None: two periods). `frozen_ms` for which pictures may be the same to the last
    bit; 0: for ever, as a simulator that stands still. `black`: the mean brightness, of 255, below which one is black.
    """

    max_age_ms: float | None = None
    frozen_ms: float = 1000.0
    black: float = 8.0


@dataclass(frozen=True)
class Declaration:
    """A robot. `policy` is what the policy's actions mean, `robot` what the motors take."""

    name: str
    actions: Literal["delta", "absolute"]
    period_ms: float
    policy: Meaning
    robot: Meaning
    limits: Bounds
    watchdog: Lapse
    gripper: Grip | None = None
    workspace: Workspace | None = None
    camera: Sight = Sight()

    def __post_init__(self) -> None:
        _check_meanings(self)
        _check_numbers(self)
        _check_workspace(self)

    @staticmethod
    def read(path: Path) -> Declaration:
        """UsageError for a file that is not there, is no TOML, says too little or something that cannot be."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}; docs/robot.md has an example to copy") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from error
        _refuse_silence(raw, str(path))
        try:
            return typed_json.from_json(Declaration, raw, str(path))
        except ValueError as error:
            said = MISSING.sub(" does not say", str(error))
            raise UsageError(f"{said}; docs/robot.md has an example") from error
        except OverflowError as error:
            raise UsageError(f"{path}: a number is too large ({error}); docs/robot.md has an example") from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    @property
    def dims(self) -> int:
        return len(self.robot.units)

    @property
    def delta(self) -> bool:
        """Whether an action is a displacement, so that rest is zero; else it is a pose."""
        return self.actions == "delta"

    @property
    def needs_pose(self) -> bool:
        """Whether an episode can begin only at a known pose."""
        return not self.delta or (self.workspace is not None and self.workspace.relative_to == "base")

    @property
    def moving(self) -> tuple[int, ...]:
        """The dimensions that are no gripper: those that limits name."""
        return tuple(i for i, unit in enumerate(self.robot.units) if unit != GRIPPER)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The dimensions that a workspace names."""
        return tuple(i for i, unit in enumerate(self.robot.units) if unit in LENGTHS)

    @property
    def lapse_s(self) -> float:
        """Seconds after which a missing action counts as missing."""
        return (self.watchdog.after_ms or PERIODS * self.period_ms) / 1e3

    @property
    def max_age_s(self) -> float:
        """Seconds for which an action may come from a picture."""
        return (self.camera.max_age_ms or AGE_PERIODS * self.period_ms) / 1e3

    def to_robot(self, values: Floats) -> Floats:
        """An action (dims,) as the policy gives it, in the robot's units; unchanged bits where both mean the same."""
        if values.shape != (self.dims,):
            raise UsageError(f"{self.name} takes {self.dims} numbers an action, got an array of shape {values.shape}")
        converted = np.array(values, dtype=np.float64)
        for i, (given, wanted) in enumerate(zip(self.policy.units, self.robot.units, strict=True)):
            if wanted == GRIPPER:
                converted[i] = self._grip(float(converted[i]))
            elif given != wanted:
                converted[i] = float(converted[i]) * (_size(given) / _size(wanted))
        return converted

    def _grip(self, value: float) -> float:
        ours, theirs = self.policy.gripper, self.robot.gripper
        if ours is None or theirs is None or ours == theirs:
            return value
        return theirs.closed + (value - ours.closed) / (ours.open - ours.closed) * (theirs.open - theirs.closed)


def too_far(declaration: Declaration, dimension: int, value: float) -> bool:
    """Whether a delta is so large that its unit must be mistaken: over a metre, or half a turn."""
    unit = declaration.robot.units[dimension]
    return declaration.delta and abs(value) * _size(unit) > MOST[unit]


def _size(unit: str) -> float:
    return {**LENGTHS, **ANGLES}[unit]


def _refuse_silence(raw: dict[str, object], where: str) -> None:
    """Name what must be said, with lines to copy: nothing of it has a default."""
    missing: list[str] = []
    for name, about in (("policy", "what its data set's numbers mean"), ("robot", "what the motors take")):
        table = raw.get(name)
        units = table.get("units") if isinstance(table, dict) else None
        jaws = table.get("gripper") if isinstance(table, dict) else None
        lines = [] if units else [UNITS_LINE]
        if not jaws and (not isinstance(units, list) or GRIPPER in units):
            lines.append(GRIPPER_LINE)
        missing += [f"[{name}]  # {about}", *lines] if lines else []
    if missing:
        example = "".join(f"\n    {line}" for line in missing)
        raise UsageError(f"{where} does not say the robot's units or gripper, and nothing guesses them; add:{example}")


def _check_meanings(robot: Declaration) -> None:
    if not robot.robot.units or len(robot.policy.units) != len(robot.robot.units):
        raise UsageError(
            f"policy.units has {len(robot.policy.units)} dimensions and robot.units {len(robot.robot.units)}: "
            "name one unit for each dimension of the action in both"
        )
    for i, (given, wanted) in enumerate(zip(robot.policy.units, robot.robot.units, strict=True)):
        if not any(given in kind and wanted in kind for kind in (LENGTHS, ANGLES, {GRIPPER})):
            raise UsageError(
                f"dimension {i} is in {given} for the policy and in {wanted} for the robot: no unit fits both"
            )
    for name, meaning in (("policy", robot.policy), ("robot", robot.robot)):
        jaws = meaning.gripper
        if (jaws is None) == (GRIPPER in meaning.units):
            raise UsageError(
                f"{name}.units and {name}.gripper disagree on whether there is a gripper: add {GRIPPER_LINE}"
            )
        if jaws is not None and (jaws.open == jaws.closed or not np.isfinite([jaws.open, jaws.closed]).all()):
            raise UsageError(
                f"{name}.gripper has open {jaws.open:g} and closed {jaws.closed:g}: give two numbers that differ"
            )
    if (robot.gripper is None) == (GRIPPER in robot.robot.units):
        raise UsageError(
            'say how the gripper is before the first action: [gripper] at_rest = "open" (only with a gripper)'
        )


def _check_numbers(robot: Declaration) -> None:
    if not LEAST_MS <= robot.period_ms <= MOST_MS:
        raise UsageError(
            f"got period_ms {robot.period_ms:g}, expected the milliseconds between two actions, such as 200"
        )
    after = robot.watchdog.after_ms
    if after is not None and not robot.period_ms <= after <= MOST_MS:
        why = " (below a period it would lapse after every action)" if after < robot.period_ms else ""
        raise UsageError(
            f"got watchdog.after_ms {after:g}, expected milliseconds, such as {PERIODS * robot.period_ms:g}{why}"
        )
    if robot.watchdog.recover < 0:
        raise UsageError(
            f"got watchdog.recover {robot.watchdog.recover}, expected 0 (until a reset) or a number of actions"
        )
    if robot.gripper is not None and robot.gripper.debounce < 1:
        raise UsageError(f"got gripper.debounce {robot.gripper.debounce}, expected at least 1")
    _check_sight(robot.camera)
    limits = robot.limits
    if (limits.bounds is None) == (limits.low is None) or (limits.low is None) != (limits.high is None):
        raise UsageError('limits: give bounds = "statistics", or low and high, one number for each moving dimension')
    for name in ("low", "high", "step", "jerk"):
        _check_list(getattr(limits, name), len(robot.moving), f"limits.{name}", positive=name in ("step", "jerk"))


def _check_sight(camera: Sight) -> None:
    age = camera.max_age_ms
    if age is not None and not 0 < age <= MOST_MS:
        raise UsageError(f"got camera.max_age_ms {age:g}, expected milliseconds, such as 400")
    if not (math.isfinite(camera.frozen_ms) and camera.frozen_ms >= 0):
        raise UsageError(f"got camera.frozen_ms {camera.frozen_ms:g}, expected milliseconds, or 0 for no check")
    if not 0 <= camera.black < 256:
        raise UsageError(f"got camera.black {camera.black:g}, expected a brightness from 0 (no check) to 255")


def _check_workspace(robot: Declaration) -> None:
    box = robot.workspace
    if box is None:
        return
    _check_list(box.low, len(robot.lengths), "workspace.low")
    _check_list(box.high, len(robot.lengths), "workspace.high")
    if any(low >= high for low, high in zip(box.low, box.high, strict=True)):
        raise UsageError("workspace.low must lie below workspace.high in each dimension")
    if box.axes == "tool":
        raise UsageError(
            "a workspace needs actions along the base's axes: along a tool's they do not add up to a position"
        )


def _check_list(values: tuple[float, ...] | None, count: int, name: str, *, positive: bool = False) -> None:
    if values is None:
        return
    if len(values) != count:
        raise UsageError(f"{name} has {len(values)} numbers, expected {count}")
    if not np.isfinite(values).all() or (positive and min(values, default=1.0) <= 0):
        raise UsageError(f"{name} must be finite{' and above zero' if positive else ''}, got {list(values)}")
