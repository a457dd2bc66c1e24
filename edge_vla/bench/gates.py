"""What must hold for a candidate to pass as the same policy: checks on a finished result.

Bounds are relative to the noise floor, because the floor is not 100 %, and widen as the bits shrink; they were declared
before the runs that they check. A share is checked by its interval: green if all of it is on the right side of the
bound, red if none of it is, undecided between, which more frames or episodes settle. Rare events are checked by their
mean, because the interval of zero events reaches far. Speed is no gate: machines are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from edge_vla.bench.closed_loop import ALL
from edge_vla.bench.latency import CACHED
from edge_vla.bench.plan import ClosedLoopPlan
from edge_vla.bench.result import (
    ROUNDING_NOISE,
    Agreement,
    Bounds,
    Candidate,
    DeclaredClosedLoop,
    DeclaredGates,
    Gate,
    Interval,
    PairedOutcome,
    Result,
)

SURELY_CACHED: Final = 0.7  # below it, no noise of a shared machine is an explanation


def _bounds(tokens: float, actions: float, high_margin_flips: float, gripper_flips: float) -> Bounds:
    return Bounds(
        tokens_below_floor=tokens,
        actions_below_floor=actions,
        high_margin_flips=high_margin_flips,
        gripper_flips_above_floor=gripper_flips,
    )


# By stored bits per weight, rounded up to one of these.
BOUNDS: Final[Mapping[int, Bounds]] = {
    16: _bounds(0.005, 0.01, 0.0, 0.002),
    8: _bounds(0.03, 0.05, 0.002, 0.005),
    4: _bounds(0.25, 0.35, 0.03, 0.02),
    3: _bounds(0.45, 0.55, 0.10, 0.05),
}


def declared(plan: ClosedLoopPlan | None) -> DeclaredGates:
    """The bounds, and the closed loop's margin and length, as they stand before anything is measured."""
    return DeclaredGates(
        by_bits={str(bits): bounds for bits, bounds in BOUNDS.items()},
        repeated_inputs=CACHED,
        closed_loop=None
        if plan is None
        else DeclaredClosedLoop(
            environment=plan.environment, episodes=plan.episodes, margin=plan.margin, live=plan.live
        ),
    )


def check(result: Result) -> list[Gate]:
    """Every gate of every candidate: red ones first, then the undecided."""
    floor = result.floors.get(ROUNDING_NOISE)
    gates = [gate for row in result.candidates for gate in _candidate(row, floor)]
    return sorted(gates, key=lambda gate: (False, None, True).index(gate.passed))


def bounds(bits: float) -> Bounds:
    """By the nearest format that keeps as much: a group's scale and zero point do not make four bits eight."""
    return BOUNDS[min((kept for kept in BOUNDS if kept >= bits - 0.5), default=max(BOUNDS))]


def _candidate(row: Candidate, floor: Agreement | None) -> Iterator[Gate]:
    if row.failed is not None:
        yield _gate("measured to the end", row, False, None, None, row.failed)
        return
    if row.agreement is not None:
        allowed = bounds(row.artifact.bits_per_weight)
        if floor is not None:
            yield from _against_floor(row, row.agreement, floor, allowed)
        yield from _high_margin_flips(row, row.agreement, allowed)
        yield from _invalid(row, row.agreement, allowed)
        for measured in MEASURED:
            yield from measured(row)


def _gate(name: str, row: Candidate, passed: bool | None, value: float | None, bound: float | None, why: str) -> Gate:
    return Gate(name=name, system=row.name, passed=passed, value=value, bound=bound, why=why)


def _above(share: Interval, bound: float) -> bool | None:
    """Whether an interval lies above a bound, below it (False), or on both sides (None)."""
    return True if share.low >= bound else False if share.high < bound else None


def _against_floor(row: Candidate, agreement: Agreement, floor: Agreement, allowed: Bounds) -> Iterator[Gate]:
    for name, share, noise, less in (
        ("teacher-forced tokens", agreement.teacher_forced, floor.teacher_forced, allowed.tokens_below_floor),
        ("free-running tokens", agreement.free_running, floor.free_running, allowed.actions_below_floor),
    ):
        why = f"share equal to the reference's; the bound is the noise floor less {less:.1%}"
        yield _gate(name, row, _above(share, noise.mean - less), share.mean, noise.mean - less, why)
    bound, flips = floor.gripper.flips.mean + allowed.gripper_flips_above_floor, agreement.gripper.flips
    passed = True if flips.mean <= bound else False if flips.low > bound else None
    why = "share of frames where it opens and the reference closes, or the reverse"
    yield _gate("gripper flips", row, passed, flips.mean, bound, why)


def _high_margin_flips(row: Candidate, agreement: Agreement, allowed: Bounds) -> Iterator[Gate]:
    flips = agreement.margins.high_margin
    if flips is not None and flips.share is not None:
        why = f"{flips.flips} of {flips.positions} tokens changed where the reference's margin is above rounding noise"
        bound = allowed.high_margin_flips
        yield _gate("high-margin flips", row, flips.share <= bound, flips.share, bound, why)


def _invalid(row: Candidate, agreement: Agreement, allowed: Bounds) -> Iterator[Gate]:
    found = agreement.invalid
    # A policy that was never trained to act (random weights) has no action token to lose.
    bound = found.reference + (0.0 if found.reference == 0 else 1 - allowed.tokens_below_floor)
    why = "share of positions where the whole vocabulary's best id is no action token"
    yield _gate("invalid tokens", row, found.candidate <= bound, found.candidate, bound, why)


def _units(row: Candidate) -> Iterator[Gate]:
    why = "largest difference between its actions and its tokens decoded with the reference's statistics"
    yield _gate("robot units", row, row.units_off == 0, row.units_off, 0.0, why)


def _timed_tokens(row: Candidate) -> Iterator[Gate]:
    if (timed := row.performance.timed_tokens) is not None:
        why = f"of {timed.queries} timed queries, those with other tokens than agreement was computed from"
        yield _gate("timed tokens", row, timed.different == 0, timed.different, 0.0, why)


def _repeated_frames(row: Candidate) -> Iterator[Gate]:
    times = row.performance.back_to_back
    if times is not None and times.repeat_ratio is not None:
        passed = True if times.repeat_ratio >= CACHED else None if times.repeat_ratio >= SURELY_CACHED else False
        why = "time on one frame repeated over the time on varied frames: lower means that something is cached"
        yield _gate("repeated frames", row, passed, times.repeat_ratio, CACHED, why)


def _closed_loop(row: Candidate) -> Iterator[Gate]:
    if row.closed_loop is None:
        return
    margin = row.closed_loop.margin
    for regime in row.closed_loop.regimes:
        found = regime.overall
        why = (
            f"success minus the reference's, lower end of the 90 % interval; {regime.candidate[ALL].episodes} of "
            f"{found.episodes_needed} episodes needed"
        )
        yield _gate(f"closed loop, {regime.name}", row, non_inferior(found, margin), found.difference.low, -margin, why)


def non_inferior(found: PairedOutcome, margin: float) -> bool | None:
    """Whether it succeeds as often as the reference, less `margin` at most; None where the interval holds both."""
    return True if found.non_inferior else False if found.difference.high < -margin else None


def _calibration_leakage(row: Candidate) -> Iterator[Gate]:
    leaked = row.artifact.calibration_leakage
    if leaked is not None:
        yield _gate("calibration leakage", row, leaked == 0, leaked, 0, "evaluation frames that it was calibrated on")


MEASURED: Final[tuple[Callable[[Candidate], Iterator[Gate]], ...]] = (
    _units,
    _timed_tokens,
    _repeated_frames,
    _closed_loop,
    _calibration_leakage,
)
