"""One dimension of an action: which values may follow, so that no limit is ever broken, now or later.

Bounds, step and jerk cannot conflict, because a value is only taken if the axis can still come to rest inside its
bounds afterwards: with rate v (its last difference) and jerk j that takes (v - j) + (v - 2j) + ... more. So bounds
shrink as the rate grows, and slowing down by j is always among the values that may follow. At rest any axis is safe;
each value that may follow leaves it safe. Where actions add up to a position in a box, slowing down is simulated
instead, and a value is taken only if that stays inside.

What is clamped, and the way to rest, is planned a millionth below the declared step and jerk: more than rounding can
add up to. What passes is compared with the declared ones, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

MARGIN: Final = 1 - 1e-6
HALVINGS: Final = 20  # between a value that leaves the box and one that does not
LONGEST: Final = 10_000  # actions to come to rest, at most; bounds that `Limiter` accepts need far fewer


@dataclass(frozen=True)
class AxisLimits:
    """`low`..`high` of a value, `step` of its difference, `jerk` of that one's, and a box for the sum of values.

    A `delta` axis rests at zero, and its values add up to a position; another rests wherever it is.
    """

    low: float
    high: float
    step: float = math.inf
    jerk: float = math.inf
    delta: bool = True
    box: tuple[float, float] | None = None


class AxisState(NamedTuple):
    """The last value and the one before it; the sum of all values."""

    value: float
    before: float
    position: float = 0.0

    @property
    def rate(self) -> float:
        return self.value - self.before

    def after(self, value: float) -> AxisState:
        return AxisState(value, self.value, self.position + value)


def follow(state: AxisState, limits: AxisLimits, target: float) -> float:
    """`target`, bit for bit, where it may follow; else what comes nearest on the quickest way to come to rest there."""
    if fits(state, limits, target) and stays(state.after(target), limits):
        return target
    wanted = approach(state, limits, min(max(target, limits.low), limits.high))
    if stays(state.after(wanted), limits):
        return wanted
    safe = slow_down(state, limits)
    for _ in range(HALVINGS):
        middle = safe + (wanted - safe) / 2
        if stays(state.after(middle), limits):
            safe = middle
        else:
            wanted = middle
    return safe


def fits(state: AxisState, limits: AxisLimits, target: float) -> bool:
    """Whether `target` may follow, a box aside: by the planned limits, or exactly by the declared step and jerk."""
    lower, upper = reach(state, limits)
    if lower <= target <= upper:
        return True
    jerk = limits.jerk * MARGIN
    lowest = max(limits.low, state.value - _fastest(state.value - limits.low, jerk))
    highest = min(limits.high, state.value + _fastest(limits.high - state.value, jerk))
    if not lowest <= target <= highest:
        return False
    value, before = Fraction(state.value), Fraction(state.before)
    change = Fraction(target) - value
    return abs(change) <= limits.step and abs(change - (value - before)) <= limits.jerk


def slow_down(state: AxisState, limits: AxisLimits) -> float:
    """The next value on the quickest way to rest: to zero for a delta, else to no change."""
    if limits.delta:
        return approach(state, limits, 0.0)
    lower, upper = reach(state, limits)
    less = math.copysign(max(abs(state.rate) - limits.jerk * MARGIN, 0.0), state.rate)
    return min(max(state.value + less, lower), upper)


def at_rest(state: AxisState, limits: AxisLimits) -> bool:
    """Whether nothing moves any more."""
    return state.value == state.before and (state.value == 0.0 or not limits.delta)


def reach(state: AxisState, limits: AxisLimits) -> tuple[float, float]:
    """The least and the greatest value that may follow, a box aside."""
    step, jerk = limits.step * MARGIN, limits.jerk * MARGIN
    fall = max(state.rate - jerk, -step, -_fastest(state.value - limits.low, jerk))
    rise = min(state.rate + jerk, step, _fastest(limits.high - state.value, jerk))
    lower = min(max(state.value + fall, limits.low), limits.high)
    upper = min(max(state.value + rise, limits.low), limits.high)
    if lower <= upper:
        return lower, upper
    middle = lower + (upper - lower) / 2  # rounding left no value between them
    return middle, middle


def approach(state: AxisState, limits: AxisLimits, target: float) -> float:
    """The next value on the quickest way to come to rest at `target`, which lies within the bounds."""
    lower, upper = reach(state, limits)
    gap, jerk = target - state.value, limits.jerk * MARGIN
    if abs(gap) <= jerk and lower <= target <= upper:
        return target
    return min(max(state.value + math.copysign(_fastest(abs(gap), jerk), gap), lower), upper)


def stays(state: AxisState, limits: AxisLimits) -> bool:
    """Whether the position is inside the box, and stays there while the axis slows down."""
    if limits.box is None:
        return True
    low, high = limits.box
    for _ in range(LONGEST):
        if not low <= state.position <= high:
            return False
        if at_rest(state, limits):
            return True
        state = state.after(slow_down(state, limits))
    return False


def _fastest(gap: float, jerk: float) -> float:
    """The largest rate that still comes to rest within `gap`: the most v with v + (v - j) + (v - 2j) + ... <= gap."""
    if gap <= 0.0:
        return 0.0
    if gap <= jerk:
        return gap
    whole = math.floor((math.sqrt(1 + 8 * gap / jerk) - 1) / 2)
    return gap / (whole + 1) + jerk * whole / 2
