"""Whether recorded actions are in the units and conventions of the data set that they are to stand for.

A data set's 1st and 99th percentile leave two in a hundred of its own values outside. So a dimension that lies wholly
outside, or of which a tenth lies ten ranges away, is not of that data set: it is refused, because everything would be
clipped to its ends and nobody would see it. A tenth outside is said. That 1 means open and not closed, no number tells.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.data.frames import INDEX, Frame
from edge_vla.errors import EdgeVLAWarning, FrameError
from edge_vla.openvla.action import DIMENSIONS
from edge_vla.openvla.statistics import ActionStatistics, Statistics

Floats = NDArray[np.float64]

ENOUGH: Final = 8  # frames: by chance all of so few lie outside once in 10^13 recordings
BEYOND: Final = 0.05  # of the range, by which a value must be out to be wholly outside: a gripper's 1 where q99 is 0.98
OFTEN: Final = 0.1  # of the frames, and three at least
FAR: Final = 10.0  # ranges: degrees, millimetres, percent and bytes are farther
MOVING: Final = 1e-6  # a range below it is a dimension that never moves
STILL: Final = 0.01  # of the range, that a recording in larger units spans


@dataclass(frozen=True)
class Dimension:
    """One dimension of a recording beside its data set's percentiles."""

    name: str
    values: Floats  # (frames,)
    low: float
    high: float

    @property
    def range(self) -> float:
        return self.high - self.low

    @property
    def outside(self) -> float:
        """The share of frames outside of the percentiles, but for rounding."""
        slack = 1e-3 * self.range + 1e-6
        return float(((self.values < self.low - slack) | (self.values > self.high + slack)).mean())

    def often_beyond(self, ranges: float) -> bool:
        """Whether a tenth of the frames, and three at least, lie so many ranges outside."""
        return _often((self.values < self.low - ranges * self.range) | (self.values > self.high + ranges * self.range))

    def refusal(self) -> str | None:
        """Why these can't be values of the data set; None where they may be."""
        if len(self.values) < ENOUGH or self.range < MOVING:
            return None
        if self.range >= 0.5 and -0.1 <= self.low < self.high <= 1.1 and self._signed():
            return "looks like -1 and 1 where the data set has 0 and 1"
        if self._wholly_outside() or self.often_beyond(FAR):
            return self._looks_like()
        return None

    def _signed(self) -> bool:
        return bool(np.abs(self.values).max() <= 1.05) and _often(self.values < self.low - 0.5 * self.range)

    def _wholly_outside(self) -> bool:
        slack = BEYOND * self.range
        return bool(((self.values < self.low - slack) | (self.values > self.high + slack)).all())

    def _looks_like(self) -> str:
        times = float(np.percentile(np.abs(self.values), 95)) / max(abs(self.low), abs(self.high))
        if self.low >= 0 > self.values.max() or self.high <= 0 < self.values.min():
            return "has the other sign"
        if self.name in DIMENSIONS[:3] and 300 < times < 3000:
            return f"is {times:.0f} times as large: millimetres for metres?"
        if self.name in DIMENSIONS[3:6] and 18 < times < 180:
            return f"is {times:.0f} times as large: degrees for radians?"
        return f"is {times:.2g} times as large" if times >= FAR else "lies wholly outside"


def check_recorded(frames: Sequence[Frame], keys: Sequence[str], statistics: Statistics) -> None:
    """Compare the actions of those frames that have one with the data sets `keys`, one for each frame.

    FrameError for an action of other dimensions, with a number that is not finite, or in another convention.
    EdgeVLAWarning with the share outside of q01 and q99, for each dimension of which a tenth is.
    """
    actions: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for frame, key in zip(frames, keys, strict=True):
        if frame.action is not None:
            actions[key].append(sound_action(frame, statistics[key]))
    for key, found in actions.items():
        dimensions = list(_dimensions(np.array(found, dtype=np.float64), statistics[key]))
        refused = [f"{one.name} {why} ({_spans(one)})" for one in dimensions if (why := one.refusal())]
        if refused:
            raise FrameError(
                f"the {len(found)} recorded actions are not in the units or convention of {key!r}: "
                f"{'; '.join(refused)}; convert them in {INDEX}, or name their data set with unnorm_key"
            )
        for doubt in _doubts(key, dimensions, statistics[key]):
            warnings.warn(doubt, EdgeVLAWarning, 3)


def sound_action(frame: Frame, statistics: ActionStatistics) -> tuple[float, ...]:
    """The frame's action; FrameError without one, with another number of dimensions, or with NaN or infinity."""
    action = frame.action
    if action is None or len(action) != statistics.dims or not np.isfinite(action).all():
        raise FrameError(
            f"{frame.image}: expected {statistics.dims} finite numbers as action, got {action}: correct its line "
            f"in {INDEX}"
        )
    return action


def _dimensions(actions: Floats, statistics: ActionStatistics) -> Iterator[Dimension]:
    seven = statistics.dims == len(DIMENSIONS)
    names = DIMENSIONS if seven else [f"dimension {number}" for number in range(statistics.dims)]
    for name, values, low, high in zip(names, actions.T, statistics.q01, statistics.q99, strict=True):
        yield Dimension(name, values, float(low), float(high))


def _doubts(key: str, dimensions: Sequence[Dimension], statistics: ActionStatistics) -> Iterator[str]:
    moving = [one for one in dimensions if one.range >= MOVING]
    out = [one for one in moving if one.often_beyond(1e-3)]
    if out:
        shares = ", ".join(f"{one.name} {one.outside:.0%}" for one in out)
        scaled = np.array([one.values for one, mask in zip(dimensions, statistics.mask, strict=True) if mask])
        unit = scaled.size and np.abs(scaled).max() <= 1 and np.abs(scaled).max() > 0.9
        hint = "; all are in -1 to 1: normalised already?" if unit and len(out) > 2 else ""
        yield f"recorded actions outside of q01 to q99 of {key!r}, where OpenVLA clips them: {shares}{hint}"
    fixed = [one.name for one in dimensions if one.range < MOVING and _often(np.abs(one.values - one.low) > 1e-3)]
    if fixed:
        yield f"recorded actions move {', '.join(fixed)}, which never move in {key!r}: OpenVLA leaves them out"
    spans = [np.ptp(one.values) / one.range for one, mask in zip(dimensions, statistics.mask, strict=True)
             if mask and one.range >= MOVING]  # fmt: skip
    if spans and max(spans) < STILL and len(dimensions[0].values) >= ENOUGH:
        yield (
            f"recorded actions span {max(spans):.2%} of q01 to q99 of {key!r} at most: a robot that stands still, or "
            "larger units than the data set's"
        )


def _spans(one: Dimension) -> str:
    return f"{one.values.min():.3g} to {one.values.max():.3g}, q01 to q99 {one.low:.3g} to {one.high:.3g}"


def _often(these: NDArray[np.bool_]) -> bool:
    return int(these.sum()) >= 3 and float(these.mean()) >= OFTEN
