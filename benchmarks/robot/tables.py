"""The closed loop's result as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.markdown import table, targets
from benchmarks.robot.results import FaultRow, RobotActResult
from benchmarks.robot.ros2_results import MessageRun, Ros2Result

COLUMNS = ("fault", "times", "seconds", "held the robot", "turns without an action", "actions meanwhile")

ROS2_COLUMNS = ("Hz asked", "Hz", "images", "actions", "lost", "doubled", "out of order", "wrong", "p50 ms", "p99 ms")


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


def ros2(result: Ros2Result) -> Iterator[str]:
    steps = sum(step.succeeded for step in result.lifecycle)
    yield (
        f"{result.distribution}, {result.middleware}: {result.pictures} pictures with {result.actions} actions; "
        f"{steps} steps of the lifecycle; {len(result.mismatches)} mismatches named."
    )
    yield ""
    yield from table(ROS2_COLUMNS, map(_messages, result.runs))
    yield ""
    yield f"Note: {result.note}"


def _messages(run: MessageRun) -> list[str]:
    wrong = (run.lost, run.doubled, run.out_of_order, run.wrong)
    rates, trip = (f"{run.rate_hz:g}", f"{run.achieved_hz:.1f}"), run.round_trip
    return [*rates, str(run.sent), str(run.answered), *map(str, wrong), f"{trip.p50_ms:.0f}", f"{trip.p99_ms:.0f}"]


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
