"""Laws of one axis, for any targets whatever; the oracle is exact arithmetic over what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.robot.axis import LONGEST, AxisLimits, AxisState, at_rest, follow, slow_down

finite = st.floats(allow_nan=False, allow_infinity=False)
nearby = st.floats(-3, 3)
targets = st.lists(st.one_of(nearby, finite, st.sampled_from([-1.0, 0.0, 1.0, 1e308, -1e308])), max_size=60)
fraction = st.floats(1e-3, 3)


@st.composite
def axes(draw: st.DrawFn, *, delta: bool | None = None, boxed: bool | None = None) -> AxisLimits:
    scale = 10.0 ** draw(st.integers(-6, 6))
    low, high = -draw(st.floats(0, 1)) * scale, draw(st.floats(1e-2, 1)) * scale
    step, jerk = (draw(st.one_of(st.just(math.inf), fraction.map(lambda part: part * scale))) for _ in range(2))
    delta = draw(st.booleans()) if delta is None else delta
    boxed = draw(st.booleans()) if boxed is None else boxed
    box = (-draw(st.floats(0, 5)) * scale, draw(st.floats(0, 5)) * scale) if boxed and delta else None
    return AxisLimits(low, high, step, jerk, delta, box)


def scaled(limits: AxisLimits, asked: Sequence[float]) -> list[float]:
    """Targets about as large as the bounds, unless they are huge anyway."""
    return [target * limits.high if abs(target) <= 3 else target for target in asked]


def run(limits: AxisLimits, asked: Sequence[float]) -> list[float]:
    state, found = AxisState(0.0, 0.0), []
    for target in asked:
        found.append(follow(state, limits, target))
        state = state.after(found[-1])
    return found


def assert_inside(limits: AxisLimits, values: Sequence[float]) -> None:
    """Exactly: not by a rounding more than declared."""
    before, last = Fraction(0), Fraction(0)
    for value in map(Fraction, values):
        assert limits.low <= value <= limits.high
        assert abs(value - last) <= limits.step
        assert abs(value - 2 * last + before) <= limits.jerk
        before, last = last, value
    if limits.box is not None:
        slack = 1e-12 * max(map(abs, limits.box))
        for count in range(len(values) + 1):
            assert limits.box[0] - slack <= math.fsum(values[:count]) <= limits.box[1] + slack


@given(axes(), targets)
def test_no_output_breaks_a_limit(limits: AxisLimits, asked: list[float]) -> None:
    assert_inside(limits, run(limits, scaled(limits, asked)))


@given(axes(), st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.integers(1, 40)), max_size=4))
def test_no_push_as_hard_as_it_may_be_breaks_a_limit(limits: AxisLimits, pushes: list[tuple[float, int]]) -> None:
    """Each target is one that step and jerk allow, whatever lies ahead."""
    state, values = AxisState(0.0, 0.0), list[float]()
    for push in [push for push, count in pushes for _ in range(count)]:
        jerk = min(limits.jerk, limits.high)
        rate = min(max(state.rate + push * jerk, -limits.step), limits.step)
        values.append(follow(state, limits, min(max(state.value + rate, limits.low), limits.high)))
        state = state.after(values[-1])
    assert_inside(limits, values)


@given(axes(), targets)
def test_what_came_out_passes_bit_for_bit(limits: AxisLimits, asked: list[float]) -> None:
    once = run(limits, scaled(limits, asked))
    assert [value.hex() for value in run(limits, once)] == [value.hex() for value in once]


@given(axes(), targets)
def test_from_anywhere_it_comes_to_rest_inside_the_limits(limits: AxisLimits, asked: list[float]) -> None:
    values = run(limits, scaled(limits, asked))
    state = AxisState(0.0, 0.0)
    for value in values:
        state = state.after(value)
    slowing = 0
    while not at_rest(state, limits):
        values.append(slow_down(state, limits))
        state, slowing = state.after(values[-1]), slowing + 1
        assert slowing < LONGEST
    assert_inside(limits, values)


@given(axes(boxed=False), targets, st.floats(0, 1))
def test_a_target_that_stays_is_reached_and_kept(limits: AxisLimits, asked: list[float], part: float) -> None:
    target = min(limits.low + part * (limits.high - limits.low), limits.high)
    state, values = AxisState(0.0, 0.0), list[float]()
    for aim in scaled(limits, asked):
        state = state.after(follow(state, limits, aim))
    while values[-3:] != [target] * 3:
        values.append(follow(state, limits, target))
        state = state.after(values[-1])
        assert len(values) < 5_000
    above = [value > target for value in values if value != target]
    assert sum(one != other for one, other in pairwise(above)) <= 4  # it does not swing for long


def whole_motion(step: int, jerk: int, pushes: Sequence[int]) -> list[int]:
    value = rate = 0
    values = [value]
    for push in pushes:
        rate = min(max(rate + max(-jerk, min(jerk, push)), -step), step)
        value += rate
        values.append(value)
    while rate:
        rate -= min(jerk, abs(rate)) * (1 if rate > 0 else -1)
        value += rate
        values.append(value)
    return values


@given(st.integers(1, 900), st.integers(1, 300), st.lists(st.integers(-300, 300), max_size=40))
def test_a_motion_inside_all_limits_passes_bit_for_bit(step: int, jerk: int, pushes: list[int]) -> None:
    """Made without the limiter, in whole numbers: pushes of up to the jerk, then rest.

    Bounds are where it got to and a hundred-thousandth further: the way to rest is planned with a millionth to spare.
    """
    asked = [value / 1024 for value in whole_motion(step, jerk, pushes)]
    spare = 1e-5 * (max(asked) - min(asked))
    limits = AxisLimits(min(asked) - spare, max(asked) + spare, step / 1024, jerk / 1024, delta=False)
    assert [one.hex() for one in run(limits, asked)] == [one.hex() for one in asked]


def test_bounds_shrink_as_the_rate_grows() -> None:
    """By hand: at 0.7 with rate 0.3 and jerk 0.1, 0.2 + 0.1 more still fit below 1.0; 0.25 + 0.15 + 0.05 do not."""
    limits = AxisLimits(-1.0, 1.0, jerk=0.1, delta=False)
    assert follow(AxisState(0.7, 0.4), limits, 0.95) == pytest.approx(0.9, abs=1e-6)
    assert follow(AxisState(0.5, 0.2), limits, 0.75) == 0.75


def test_a_box_is_left_room_to_rest_in() -> None:
    """Deltas of 0.1 with a step of 0.04: after 0.1 come 0.06 and 0.02, so none begins where 0.18 are not left."""
    limits = AxisLimits(-1.0, 1.0, step=0.04, box=(-1.0, 0.3))
    values = run(limits, [0.1] * 50)
    assert math.fsum(values) == pytest.approx(0.3, abs=1e-6)
    assert_inside(limits, values)
