"""The closed loop's result as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.markdown import table, targets
from benchmarks.robot.results import FaultRow, RobotActResult

COLUMNS = ("fault", "times", "seconds", "held the robot", "turns without an action", "actions meanwhile")


def closed_loop(result: RobotActResult) -> Iterator[str]:
    yield from targets(f"demo world over HTTP and TCP, {result.hertz:g} Hz, {result.minutes:g} minutes", result.targets)
    yield ""
    yield from table(COLUMNS, map(_fault, result.faults))
    yield ""
    yield (
        f"{result.turns} turns were due, {result.acted} were acted on, {sum(result.missed.values())} missed. The robot "
        f"took {result.taken} actions in {result.connections} connections and refused {_counts(result.refused)}. "
        f"From picture to robot p50 {result.action_ms.p50} ms, p99 {result.action_ms.p99} ms; the picture was then "
        f"{result.age_ms.p50} ms old, p99 {result.age_ms.p99} ms. Tables: {_counts(result.outcomes)}."
    )
    yield ""
    yield f"Note: {result.priority}, on a machine that others used (load average {result.load_average[0]:g})."


def _fault(row: FaultRow) -> list[str]:
    return [
        row.name,
        str(row.injected),
        f"{row.seconds:g}",
        str(sum(row.lapses.values())),
        _counts(row.misses),
        str(row.acted_during),
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "0"
