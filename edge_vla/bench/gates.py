"""What must hold for a candidate to pass as the same policy, as a table of checks on a finished result.

Bounds stand beside the noise floor, because the floor is not 100 %, and widen as the bits shrink; they were declared
before the runs that they judge. A share is judged by its interval: green when it lies on the right side, red when it
lies on the wrong one, undecided between, which more frames or episodes settle. Rare events are green by their mean, for
an interval of nothing seen reaches far. Speed is no gate: machines are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from edge_vla.bench.statistics import episodes_needed

Row = Mapping[str, Any]

FLOOR: Final = "rounding shaken"
LEAST_DISCORDANCE: Final = 0.05  # share of episodes that even two runs of one policy may not share
CACHED: Final = 0.9  # MLPerf TEST04: a repeated input takes at least this share of the varied inputs' time
SURELY_CACHED: Final = 0.7  # below which no noise of a shared machine explains it


@dataclass(frozen=True)
class Bounds:
    """How far a number format may stay behind: shares, by what the format keeps of a weight."""

    tokens_below_floor: float  # of positions, teacher-forced, the interval's lower end
    actions_below_floor: float  # of positions, free-running: early misses carry on
    clear_leads_flipped: float  # of positions where the reference led by more than rounding moves
    gripper_flips_above_floor: float  # of frames


# By stored bits per weight, rounded up to one of these.
BOUNDS: Final[Mapping[int, Bounds]] = {
    16: Bounds(0.005, 0.01, 0.0, 0.002),
    8: Bounds(0.03, 0.05, 0.002, 0.005),
    4: Bounds(0.25, 0.35, 0.03, 0.02),
    3: Bounds(0.45, 0.55, 0.10, 0.05),
}


@dataclass(frozen=True)
class Gate:
    name: str
    side: str
    passed: bool | None  # None: undecided
    value: float | None
    bound: float | None
    why: str


def declared(trial: Any) -> dict[str, Any]:
    """The bounds, and the closed loop's margin and length, as they stood before anything was measured."""
    table = {str(bits): asdict(bounds) for bits, bounds in BOUNDS.items()}
    return {"by_bits": table, "repeated_inputs": CACHED, "closed_loop": asdict(trial) if trial else None}


def judge(result: Row) -> list[dict[str, Any]]:
    """Every gate of every candidate: red ones first, then the undecided."""
    floor = result["floors"].get(FLOOR)
    gates = [gate for row in result["candidates"] for gate in _candidate(row, floor)]
    return [asdict(gate) for gate in sorted(gates, key=lambda gate: (False, None, True).index(gate.passed))]


def bounds(bits: float) -> Bounds:
    """By the nearest format that keeps as much: a group's scale and zero do not make four bits eight."""
    return BOUNDS[min((kept for kept in BOUNDS if kept >= bits - 0.5), default=max(BOUNDS))]


def _above(share: Row, bound: float) -> bool | None:
    """Whether a share's interval lies above a bound, below it (False), or on both sides (None)."""
    return True if share["low"] >= bound else False if share["high"] < bound else None


def _candidate(row: Row, floor: Row | None) -> Iterator[Gate]:
    if row.get("failed"):
        yield Gate("measured", row["name"], False, None, None, row["failed"])
        return
    if row["agreement"] is None:
        return
    for check in CHECKS:
        yield from check(row, floor)


def _tokens(row: Row, floor: Row | None) -> Iterator[Gate]:
    """Given the reference's tokens before it, and given its own."""
    if floor is None:
        return
    allowed = bounds(row["artifact"]["bits_per_weight"])
    for name, key, less in (
        ("tokens", "teacher_forced", allowed.tokens_below_floor),
        ("actions", "free_running", allowed.actions_below_floor),
    ):
        share, bound = row["agreement"][key], floor[key]["mean"] - less
        why = f"{key.replace('_', '-')} tokens equal to the reference's, against the floor less {less:.1%}"
        yield Gate(name, row["name"], _above(share, bound), share["mean"], bound, why)


def _clear_leads(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    clear = row["agreement"]["margins"]["high_margin"]
    if row["agreement"]["margins"]["floor"] is None or not clear["positions"]:
        return
    allowed = bounds(row["artifact"]["bits_per_weight"]).clear_leads_flipped
    share = clear["flips"] / clear["positions"]
    why = f"{clear['flips']} of {clear['positions']} tokens changed where the reference led by more than rounding moves"
    yield Gate("clear leads", row["name"], share <= allowed, share, allowed, why)


def _gripper(row: Row, floor: Row | None) -> Iterator[Gate]:
    if floor is None:
        return
    allowed = floor["gripper"]["flips"]["mean"] + bounds(row["artifact"]["bits_per_weight"]).gripper_flips_above_floor
    share = row["agreement"]["gripper"]["flips"]
    passed = True if share["mean"] <= allowed else False if share["low"] > allowed else None
    why = "frames where it opens and the reference closes, or the reverse"
    yield Gate("gripper", row["name"], passed, share["mean"], allowed, why)


def _invalid(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    found = row["agreement"]["invalid"]
    why = "positions where the whole vocabulary's best id is no action token; more than the reference has is damage"
    bits = row["artifact"]["bits_per_weight"]
    # A policy that was never trained to act (random weights) has no action token to lose.
    allowed = found["reference"] + (0.0 if found["reference"] == 0 else 1 - bounds(bits).tokens_below_floor)
    yield Gate("action tokens", row["name"], found["candidate"] <= allowed, found["candidate"], allowed, why)


def _units(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    why = "largest difference between its actions and its tokens decoded with the reference's statistics"
    value = row["agreement"]["units_off"]
    yield Gate("units", row["name"], value == 0, value, 0.0, why)


def _timed_as_judged(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    timed = row.get("timed_tokens")
    if timed:
        why = f"timed queries, of {timed['queries']}, that gave other tokens than when judged"
        yield Gate("timed as judged", row["name"], timed["different"] == 0, timed["different"], 0.0, why)


def _nothing_cached(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    ratio = (row.get("latency") or {}).get("back to back", {}).get("repeat_ratio")
    if ratio is not None:
        why = "time on one frame again and again, over the time on changing frames"
        passed = True if ratio >= CACHED else None if ratio >= SURELY_CACHED else False
        yield Gate("nothing remembered", row["name"], passed, ratio, CACHED, why)


def _closed_loop(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    closed: Row = row.get("closed_loop") or {"regimes": {}}
    for regime, found in closed["regimes"].items():
        margin, episodes = closed["margin"], found["candidate"]["all"]["episodes"]
        needed = episodes_needed(max(LEAST_DISCORDANCE, found["discordance"]), margin)
        passed = True if found["non_inferior"] else False if found["difference"]["high"] < -margin else None
        why = f"{regime} success against the reference's, lower end of 90 %, {episodes} of {needed} episodes needed"
        yield Gate(f"closed loop, {regime}", row["name"], passed, found["difference"]["low"], -margin, why)


def _calibration(row: Row, floor: Row | None) -> Iterator[Gate]:  # noqa: ARG001
    shared = row["artifact"].get("calibration_frames_among_these")
    if shared is not None:
        yield Gate("unseen frames", row["name"], shared == 0, shared, 0, "frames that it was calibrated on")


CHECKS: Final[tuple[Callable[[Row, Row | None], Iterator[Gate]], ...]] = (
    _tokens,
    _clear_leads,
    _gripper,
    _invalid,
    _units,
    _timed_as_judged,
    _nothing_cached,
    _closed_loop,
    _calibration,
)
