"""Gates on rows made by hand: green, red, and undecided where the interval lies on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_vla.bench import gates
from edge_vla.bench.plan import ClosedLoopPlan
from edge_vla.bench.result import ROUNDING_NOISE, Agreement, Candidate, Flips, Interval, InvalidTokens, Result
from tests.bench import sample_parts
from tests.bench.sample_result import minimal_result

SOUND = replace(sample_parts.agreement(1.0), margins=replace(sample_parts.agreement(1.0).margins, floor=0.1))


def share(mean: float, low: float, high: float) -> Interval:
    return Interval(mean, low, high)


def with_gripper_flips(flips: Interval) -> Agreement:
    return replace(SOUND, gripper=replace(SOUND.gripper, flips=flips))


def with_high_margin_flips(positions: int, flips: int) -> Agreement:
    return replace(SOUND, margins=replace(SOUND.margins, high_margin=Flips(positions=positions, flips=flips)))


def result_of(agreement: Agreement | None, bits: float = 4.125) -> tuple[Result, Candidate]:
    """One candidate beside a perfect noise floor."""
    result = minimal_result()
    row = result.candidates[0]
    row.artifact = replace(row.artifact, bits_per_weight=bits)
    row.agreement, row.units_off = agreement, 0.0
    result.floors = {ROUNDING_NOISE: replace(SOUND, gripper=with_gripper_flips(share(0, 0, 0.01)).gripper)}
    return result, row


def passed(agreement: Agreement, bits: float = 4.125) -> dict[str, bool | None]:
    return {gate.name: gate.passed for gate in gates.check(result_of(agreement, bits)[0])}


def test_a_perfect_candidate_is_green() -> None:
    found = passed(SOUND, bits=16)
    assert len(found) >= 6
    assert set(found.values()) == {True}


@pytest.mark.parametrize(("low", "high", "expected"), [(0.80, 0.90, True), (0.70, 0.80, None), (0.60, 0.70, False)])
def test_a_share_is_checked_by_its_interval(low: float, high: float, expected: bool | None) -> None:
    found = passed(replace(SOUND, teacher_forced=share((low + high) / 2, low, high)))
    assert found["teacher-forced tokens"] is expected


def test_rare_events() -> None:
    assert passed(with_gripper_flips(share(0.01, 0.0, 0.2)))["gripper flips"] is True
    assert passed(with_gripper_flips(share(0.04, 0.01, 0.2)))["gripper flips"] is None
    assert passed(with_gripper_flips(share(0.3, 0.2, 0.4)))["gripper flips"] is False
    assert passed(with_high_margin_flips(100, 4))["high-margin flips"] is False
    assert "high-margin flips" not in passed(with_high_margin_flips(0, 0))


def test_more_bits_may_differ_less() -> None:
    near = replace(SOUND, teacher_forced=share(0.9, 0.88, 0.92))
    assert passed(near, 4.125)["teacher-forced tokens"] is True
    assert passed(near, 8.05)["teacher-forced tokens"] is False


def test_units_and_invalid_tokens_allow_nothing() -> None:
    result, row = result_of(replace(SOUND, invalid=InvalidTokens(candidate=0.001, reference=0.0)))
    row.units_off = 1e-9
    found = {gate.name: gate.passed for gate in gates.check(result)}
    assert found["robot units"] is False
    assert found["invalid tokens"] is False


def test_calibration_frames_among_the_evaluation_frames_are_red() -> None:
    result, row = result_of(SOUND)
    row.artifact = replace(row.artifact, calibration_leakage=8)
    (gate,) = (gate for gate in gates.check(result) if gate.name == "calibration leakage")
    assert (gate.passed, gate.value) == (False, 8)
    row.artifact = replace(row.artifact, calibration_leakage=0)
    assert all(gate.passed for gate in gates.check(result))


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, True), (0.8, None), (0.5, False)])
def test_a_cache_between_queries(ratio: float, expected: bool | None) -> None:
    result, row = result_of(SOUND)
    times = replace(sample_parts.latency(10.0), repeat_ratio=ratio)
    row.performance.latency = {times.mode: times}
    assert {gate.name: gate.passed for gate in gates.check(result)}["repeated frames"] is expected


def test_closed_loop() -> None:
    result, row = result_of(SOUND)
    closed = sample_parts.closed_loop(0.0)
    outcome = closed.regimes[0].overall
    for difference, non_inferior, expected in (
        (share(0.0, -0.02, 0.02), True, True),
        (share(-0.02, -0.04, 0.0), False, None),
        (share(-0.1, -0.2, -0.05), False, False),
    ):
        changed = replace(outcome, difference=difference, non_inferior=non_inferior)
        closed.regimes = [replace(closed.regimes[0], overall=changed)]
        row.closed_loop = closed
        assert {gate.name: gate.passed for gate in gates.check(result)}["closed loop, lock-step"] is expected


def test_red_comes_first_and_a_system_that_broke_is_red() -> None:
    result, row = result_of(SOUND)
    broken = Candidate(name="broken", artifact=row.artifact, failed="it stopped")
    result.candidates.append(broken)
    first = gates.check(result)[0]
    assert (first.name, first.system, first.passed, first.why) == ("measured to the end", "broken", False, "it stopped")


def test_bounds_are_declared_with_the_closed_loop() -> None:
    declared = gates.declared(ClosedLoopPlan("package.module:world", 40, 0.05))
    assert declared.closed_loop is not None
    assert (declared.closed_loop.episodes, declared.closed_loop.margin) == (40, 0.05)
    assert {float(bits) for bits in declared.by_bits} == {16, 8, 4, 3}
    assert gates.declared(None).closed_loop is None
