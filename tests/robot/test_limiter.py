"""The limiter on whole actions: what is flagged and counted, NaN, the gripper, workspaces, statistics, starts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import NumericError, UsageError
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.robot import Limiter, NotFiniteError
from edge_vla.robot.units import Bounds, Declaration, Grip, Jaws, Meaning, Workspace
from tests.robot.robots import LINE, line

anything = st.lists(st.tuples(st.floats(), st.floats()), max_size=40)
ABSOLUTE = line(actions="absolute", limits=Bounds(low=(0.0,), high=(1.0,), step=(0.2,), jerk=(0.1,)))


def statistics(*q99: float, mask: bool = True) -> ActionStatistics:
    high = np.array([*q99, 1.0])
    return ActionStatistics(-high, high, np.array([mask] * len(q99) + [False]))


def test_what_was_clamped_and_by_how_much() -> None:
    limiter = Limiter(line(limits=Bounds(low=(-0.1,), high=(0.1,))))
    limited = limiter.limit([0.25, 1.5])
    assert limited.clamped
    assert limited.values.tolist() == [0.1, 1.0]
    assert limited.by == pytest.approx([-0.15, -0.5])
    assert limited.causes == (("bounds",), ("bounds",))
    passed = limiter.limit([0.05, 1.0])
    assert not passed.clamped
    assert passed.causes == ((), ())
    counters = limiter.counters
    assert (counters.actions, counters.clamped, counters.non_finite, counters.stops) == (2, 1, 0, 0)
    assert counters.changes == {(0, "bounds"): 1, (1, "bounds"): 1}


def test_each_limit_is_named() -> None:
    def causes(limits: Bounds, *asked: float) -> tuple[str, ...]:
        limiter = Limiter(line(limits=limits))
        return [limiter.limit([value, 1.0]) for value in asked][-1].causes[0]

    assert causes(Bounds(low=(-0.1,), high=(0.1,), step=(0.02,)), 0.05) == ("step",)
    assert causes(Bounds(low=(-0.1,), high=(0.1,), jerk=(0.02,)), 0.05) == ("jerk",)
    assert causes(Bounds(low=(-0.1,), high=(0.1,), step=(0.02,), jerk=(0.01,)), 0.2) == ("bounds", "step", "jerk")
    braking = Bounds(low=(-0.1,), high=(0.1,), jerk=(0.02,))
    assert causes(braking, 0.02, 0.06, 0.1) == ("braking",)  # 0.04 further, it could not rest below 0.1


@given(anything)
def test_reasons_stand_where_bits_changed_and_nowhere_else(actions: list[tuple[float, float]]) -> None:
    limiter = Limiter(LINE)
    for action in actions:
        if all(map(math.isfinite, action)):
            limited = limiter.limit(action)
            assert [bool(causes) for causes in limited.causes] == (limited.values != action).tolist()
    assert sum(limiter.counters.changes.values()) >= limiter.counters.clamped


@given(anything)
def test_nothing_that_is_not_finite_passes(actions: list[tuple[float, float]]) -> None:
    """And after the stop that it means, the next output is one step from rest at most."""
    limiter, stopped = Limiter(LINE), False
    for action in actions:
        if not all(map(math.isfinite, action)):
            with pytest.raises(NotFiniteError) as refused:
                limiter.limit(action)
            assert refused.value.stop[0] == 0.0
            assert 0 <= refused.value.stop[1] <= 1
            stopped = True
            continue
        values = limiter.limit(action).values
        assert np.isfinite(values).all()
        if stopped:
            assert abs(values[0]) <= 0.01  # the jerk, from rest
        stopped = False
    assert limiter.counters.non_finite == limiter.counters.stops


def test_a_nan_is_an_error_of_its_kind_and_keeps_the_gripper() -> None:
    limiter = Limiter(LINE)
    limiter.limit([0.005, 0.0])
    with pytest.raises(NumericError, match="not finite") as refused:
        limiter.limit([math.nan, 1.0])
    assert isinstance(refused.value, NotFiniteError)
    assert refused.value.stop.tolist() == [0.0, 0.0]


def test_a_unit_that_overflows_is_not_finite() -> None:
    robot = line(robot=Meaning(("mm", "gripper"), Jaws(1.0, 0.0)), limits=Bounds(low=(-1.0,), high=(1.0,)))
    with pytest.raises(NotFiniteError):
        Limiter(robot).limit([1e307, 1.0])


@pytest.mark.parametrize(
    ("jaws", "grip"), [(Jaws(1.0, 0.0), "open"), (Jaws(-1.0, 1.0), "open"), (Jaws(0.0, 1.0), "closed")]
)
def test_a_gripper_moves_when_enough_agree(jaws: Jaws, grip: str) -> None:
    meaning = Meaning(("m", "gripper"), jaws)
    robot = line(policy=meaning, robot=meaning, gripper=Grip("open" if grip == "open" else "closed", debounce=3))
    limiter = Limiter(robot)
    here, there = (jaws.open, jaws.closed) if grip == "open" else (jaws.closed, jaws.open)
    asked = [here, there, there, here, there, there, there, there, here]
    found = [limiter.limit([0.0, value]).values[1] for value in asked]
    assert found == [here] * 6 + [there] * 3
    assert limiter.counters.changes == {(1, "debounce"): 5}


@given(st.lists(st.floats(-1, 2), max_size=60), st.integers(1, 5))
def test_a_gripper_follows_runs_and_only_runs(asked: list[float], needed: int) -> None:
    limiter = Limiter(line(gripper=Grip("open", debounce=needed)))
    found = [float(limiter.limit([0.0, value]).values[1]) for value in asked]
    assert all(0 <= value <= 1 for value in found)
    halves = [value > 0.5 for value in [1.0] * needed + [min(max(value, 0.0), 1.0) for value in asked]]
    for t in range(1, len(found)):
        if (found[t] > 0.5) != (found[t - 1] > 0.5) and asked[t] != 0.5:
            assert len(set(halves[t + 1 : t + 1 + needed])) == 1  # the last `needed` agree
    if needed == 1:
        assert found == [min(max(value, 0.0), 1.0) for value in asked]


def test_a_stop_counts_no_agreement_from_before() -> None:
    limiter = Limiter(line(gripper=Grip("open", debounce=2)))
    limiter.limit([0.0, 0.0])
    assert limiter.stop().values[1] == 1.0
    assert limiter.limit([0.0, 0.0]).values[1] == 1.0


def test_the_statistics_are_bounds_in_the_robots_units() -> None:
    robot = line(robot=Meaning(("mm", "gripper"), Jaws(1.0, 0.0)), limits=Bounds(bounds="statistics"))
    limiter = Limiter(robot, statistics(0.03))
    assert limiter.limit([0.05, 1.0]).values[0] == pytest.approx(30.0)
    assert limiter.limit([-0.05, 1.0]).values[0] == pytest.approx(-30.0)


@pytest.mark.parametrize(
    ("limits", "given_statistics", "says"),
    [
        (Bounds(bounds="statistics"), None, "pass those of the policy's data set"),
        (Bounds(bounds="statistics"), statistics(0.1, 0.1), "3 dimensions"),
        (Bounds(bounds="statistics"), statistics(0.1, mask=False), "does not normalise dimension 0"),
        (Bounds(bounds="statistics"), statistics(30.0), "30 m in one action: check policy.units"),
        (Bounds(low=(0.01,), high=(0.1,)), None, "no way to rest"),
        (Bounds(low=(0.1,), high=(-0.1,)), None, "the lower one comes first"),
        (Bounds(low=(-0.1,), high=(0.1,), step=(1e-9,)), None, "limits.step of dimension 0"),
        (Bounds(low=(-0.1,), high=(0.1,), jerk=(1e-9,)), None, "limits.jerk of dimension 0"),
    ],
)
def test_limits_that_cannot_be_kept(limits: Bounds, given_statistics: ActionStatistics | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Limiter(line(limits=limits), given_statistics)


def test_absolute_actions_start_from_a_pose_and_stop_at_the_last() -> None:
    limiter = Limiter(ABSOLUTE)
    with pytest.raises(UsageError, match="call start"):
        limiter.limit([0.5, 1.0])
    with pytest.raises(UsageError, match="needs its pose"):
        limiter.start()
    with pytest.raises(UsageError, match="outside 0 to 1"):
        limiter.start([1.5, 1.0])
    with pytest.raises(UsageError, match="finite"):
        limiter.start([math.nan, 1.0])
    limiter.start([0.5, math.nan])
    first = limiter.limit([0.9, 1.0]).values[0]
    assert first == pytest.approx(0.6, abs=1e-6)
    second = limiter.limit([0.9, 1.0]).values[0]
    assert limiter.stop().values[0] == second
    assert abs(limiter.limit([0.0, 1.0]).values[0] - second) <= 0.1  # as from rest


def test_absolute_actions_hold_by_slowing_down() -> None:
    limiter = Limiter(ABSOLUTE)
    limiter.start([0.1, 1.0])
    values = [limiter.limit([1.0, 1.0]).values[0] for _ in range(3)]
    while not limiter.resting:
        values.append(limiter.hold().values[0])
    changes = np.diff([0.1, 0.1, *values])
    assert np.abs(np.diff(changes)).max() <= 0.1
    assert changes[-1] == 0.0


@pytest.mark.parametrize(
    ("robot", "pose", "most"),
    [
        (dataclasses.replace(LINE, workspace=Workspace((-0.2,), (0.3,), "start", "base")), None, 0.3),
        (dataclasses.replace(LINE, workspace=Workspace((0.0,), (1.0,), "base", "base")), [0.8, 1.0], 0.2),
        (dataclasses.replace(ABSOLUTE, workspace=Workspace((-0.2,), (0.3,), "start", "base")), [0.5, 1.0], 0.8),
        (dataclasses.replace(ABSOLUTE, workspace=Workspace((0.1,), (0.6,), "base", "base")), [0.5, 1.0], 0.6),
    ],
)
def test_a_workspace_holds_and_is_used(robot: Declaration, pose: list[float] | None, most: float) -> None:
    limiter = Limiter(robot)
    limiter.start(pose)
    sent = np.array([limiter.limit([5.0, 1.0]).values[0] for _ in range(200)])
    places = np.cumsum(sent) if robot.delta else sent
    assert places.max() <= most + 1e-12
    assert places[-1] == pytest.approx(most, abs=1e-4)
    assert limiter.counters.changes[0, "bounds"] == 200


def test_a_start_outside_the_workspace_is_refused() -> None:
    robot = line(workspace=Workspace((0.0,), (1.0,), "base", "base"))
    with pytest.raises(UsageError, match=r"starts at 1\.2, outside 0 to 1"):
        Limiter(robot).start([1.2, 1.0])


def test_the_workspace_is_named_where_it_alone_was_in_the_way() -> None:
    limiter = Limiter(
        line(limits=Bounds(low=(-0.1,), high=(0.1,)), workspace=Workspace((-1.0,), (0.15,), "start", "base"))
    )
    assert limiter.limit([0.1, 1.0]).causes[0] == ()
    limited = limiter.limit([0.1, 1.0])
    assert limited.causes[0] == ("workspace",)
    assert limited.values[0] == pytest.approx(0.05, abs=1e-6)
