"""What a result says in a sentence; and of each gate its direction, its bound, and what is missing to decide it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from edge_vla.bench.reports import text
from edge_vla.bench.result import Gate, Interval, Result

CLOSED_LOOP: Final = "closed loop"
AT_LEAST: Final = ("teacher-forced tokens", "free-running tokens", "repeated frames", CLOSED_LOOP)
SHARES: Final = ("teacher-forced tokens", "free-running tokens", "gripper flips", "high-margin flips", "invalid tokens")
WORTH: Final = 20  # more samples than this many times as many would not be worth asking for: the two are equal


@dataclass(frozen=True)
class Needed:
    """More samples that would settle an undecided gate, as far as those at hand tell; `each` is per kind of task."""

    what: Literal["episodes", "frames"]
    more: int
    each: int | None = None

    def __str__(self) -> str:
        how = "" if self.each is None else f": bench --episodes {self.each}"
        return f"needs {'about ' if self.each is None else ''}{self.more:,} more {self.what}{how}"


def is_a(gate: Gate, name: str) -> bool:
    """Whether it is the gate of this name; of a closed loop there is one for each regime."""
    return gate.name == name or gate.name.startswith(f"{name},")


def at_least(gate: Gate) -> bool:
    """Whether its bound is the least that passes; else it is the most."""
    return any(is_a(gate, name) for name in AT_LEAST)


def bound(gate: Gate) -> str:
    """`≥ 60.7%`, `≤ 2.0%`, `= 0`."""
    if gate.bound is None:
        return text.ABSENT
    if not at_least(gate) and gate.bound == 0:
        return "= 0"
    return f"{'≥' if at_least(gate) else '≤'} {_figure(gate, gate.bound)}"


def value(gate: Gate) -> str:
    if gate.value is None:
        return text.ABSENT
    return _figure(gate, gate.value) + (" at worst" if is_a(gate, CLOSED_LOOP) else "")


def _figure(gate: Gate, figure: float) -> str:
    if is_a(gate, CLOSED_LOOP):
        return f"{text.signed(figure)} pp"
    return text.share(figure) if gate.name in SHARES else text.number(figure)


def missing(gate: Gate, result: Result) -> Needed | None:
    """What would decide an undecided gate; None for a decided one, and where more of the same would not."""
    if gate.passed is not None:
        return None
    row = next((one for one in result.candidates if one.name == gate.system), None)
    if row is None or gate.bound is None:
        return None
    if is_a(gate, CLOSED_LOOP) and row.closed_loop is not None:
        regime = next((one for one in row.closed_loop.regimes if gate.name == f"{CLOSED_LOOP}, {one.name}"), None)
        if regime is None:
            return None
        kinds, done = max(1, len(regime.candidate) - 1), regime.candidate["all"].episodes
        needed = regime.overall.episodes_needed  # of policies that are equal; these may not be
        if done >= needed:
            needed = _until_clear(regime.overall.difference, gate.bound, done) or 0
        each = math.ceil(needed / kinds)
        return Needed("episodes", kinds * each - done, each) if kinds * each > done else None
    if row.agreement is None:
        return None
    shares = {
        "teacher-forced tokens": row.agreement.teacher_forced,
        "free-running tokens": row.agreement.free_running,
        "gripper flips": row.agreement.gripper.flips,
    }
    if gate.name not in shares:
        return None
    count = result.frames.count
    frames = _until_clear(shares[gate.name], gate.bound, count)
    return None if frames is None else Needed("frames", max(1, frames - count))


def to_decide(gate: Gate, result: Result) -> str:
    """In words what would decide an undecided gate; empty for a decided one."""
    if gate.passed is not None:
        return ""
    if needed := missing(gate, result):
        return str(needed)
    if gate.name == "repeated frames":
        return "needs a machine without other work"
    what = "episodes" if is_a(gate, CLOSED_LOOP) else "frames" if gate.name in SHARES else None
    return f"needs more than {WORTH} times as many {what}" if what else ""


def _until_clear(measured: Interval, limit: float, count: int) -> int | None:
    """An interval narrows with the root of its samples: how many until it no longer reaches the bound, None if WORTH
    times as many would not do.
    """
    gap = abs(measured.mean - limit)
    reach = measured.mean - measured.low if measured.mean > limit else measured.high - measured.mean
    if gap <= 0 or not 0 < (times := (reach / gap) ** 2) < WORTH:
        return None
    return math.ceil(count * times)


@dataclass(frozen=True)
class GateRow:
    """One gate of every candidate, in the candidates' order; None where a candidate has no such gate."""

    name: str
    cells: list[Gate | None]


def matrix(result: Result) -> list[GateRow]:
    """Gates by candidates: rows with a failure first, then those undecided."""
    names = list(dict.fromkeys(gate.name for gate in result.gates))
    by_place = {(gate.name, gate.system): gate for gate in result.gates}
    return [GateRow(name, [by_place.get((name, row.name)) for row in result.candidates]) for name in names]


def headline(result: Result) -> str:
    """Whether the candidates are still the same policy, as far as what was measured can tell."""
    gates, count = result.gates, result.frames.count
    if not gates:
        return "Nothing was compared with the reference: no gates."
    failed, open_ = [g for g in gates if g.passed is False], [g for g in gates if g.passed is None]
    measured = text.count(count, "frame")
    if episodes := max((_episodes(row.name, result) for row in result.candidates), default=0):
        measured += f" and {text.count(episodes, 'episode')}"
    who = _names([row.name for row in result.candidates])
    if failed:
        names = _names(list(dict.fromkeys(gate.system for gate in failed)))
        sentence = f"Failed: {names} {'is' if ' and ' not in names else 'are'} not the same policy"
        return f"{sentence}: {text.of(len(failed), len(gates))} gates failed on {measured}."
    if not open_:
        return f"Passed: {who} stayed within all {len(gates)} bounds on {measured}."
    if len(open_) == len(gates):
        return f"Undecided: {measured} are too few for any of the {len(gates)} gates."
    return (
        f"Passed what {measured} can decide, {text.of(len(gates) - len(open_), len(gates))} gates; "
        f"{len(open_)} need{'s' if len(open_) == 1 else ''} more."
    )


def _episodes(name: str, result: Result) -> int:
    """Of one candidate, in its first regime."""
    row = next(one for one in result.candidates if one.name == name)
    regimes = row.closed_loop.regimes if row.closed_loop else []
    return regimes[0].candidate["all"].episodes if regimes else 0


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
