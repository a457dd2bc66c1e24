"""The server studies' results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.markdown import table, targets
from benchmarks.serve.fleet import FleetResult
from benchmarks.serve.fuzz import FuzzResult
from benchmarks.serve.results import (
    EpisodesResult,
    FairnessResult,
    Load,
    OverheadResult,
    ServeFaultsResult,
    ServeSoakResult,
    Spread,
)

HELD = {True: "held", False: "missed", None: "skipped"}
LOAD_COLUMNS = ("robots", "asking", "actions a second", "Jain", "round trip p50", "p99", "age p50", "p99", "refused")


def overhead(result: OverheadResult) -> Iterator[str]:
    yield from targets(f"demo policy, int4, in turns of {result.in_a_row}", result.targets)
    yield ""
    rows = {
        "policy in process": result.policy,
        "session in process": result.session,
        "WebSocket": result.websocket,
        "WebSocket less the engine": result.websocket_wire,
        "WebSocket, processor time beside the engine": result.websocket_cpu,
        "REST": result.rest,
        "REST less the engine": result.rest_wire,
        "REST, processor time beside the engine": result.rest_cpu,
    }
    size = " x ".join(map(str, result.image[:2]))
    yield from table([f"{size} pixels, milliseconds", "actions", "p5", "p50", "p99"], map(_times, rows, rows.values()))
    yield from note(result.note if result.core is None else "; ".join(filter(None, ["all on one core", result.note])))


def note(text: str) -> Iterator[str]:
    """What else the machine did, where a result says so."""
    if text:
        yield ""
        yield f"Note: {text}."


def _times(name: str, spread: Spread) -> list[str]:
    return [name, str(spread.count), f"{spread.p5_ms:.2f}", f"{spread.p50_ms:.2f}", f"{spread.p99_ms:.2f}"]


def fairness(result: FairnessResult) -> Iterator[str]:
    yield from targets("demo policy, int4", result.targets)
    yield ""
    yield from table(LOAD_COLUMNS, map(_load, (*result.loads, result.overload)))
    yield from note(result.note)


def soak(result: ServeSoakResult) -> Iterator[str]:
    yield from targets(f"demo policy, int4, {result.load.seconds / 60:g} minutes", result.targets)
    yield ""
    yield from table(LOAD_COLUMNS, [_load(result.load)])
    yield ""
    yield f"Resident memory: {result.rss_start_mib:.1f} MiB, at the end {result.rss_end_mib:.1f} MiB."
    yield from note(result.note)


def _load(load: Load) -> list[str]:
    refused = sum(count for robot in load.robots for count in robot.refused.values())
    return [
        str(len(load.robots)),
        "back to back" if load.hertz is None else f"{load.hertz:g} Hz",
        f"{load.actions_per_s:.1f}",
        f"{load.jain:.4f}",
        *(f"{ms:.1f} ms" for spread in (load.round_trip, load.age) for ms in (spread.p50_ms, spread.p99_ms)),
        str(refused),
    ]


def episodes(result: EpisodesResult) -> Iterator[str]:
    yield from targets("demo policy, int4, through the server and in process", result.targets)
    yield ""
    yield (
        f"{result.actions} actions in {result.episodes} pairs of episodes; success {result.success_in_process:.1%} in "
        f"process, {result.success_served:.1%} served."
    )


def faults(result: ServeFaultsResult) -> Iterator[str]:
    rows = [(one.name, one.expected, one.observed, HELD[one.held]) for one in result.faults]
    yield from table(["what was done", "expected", "seen", ""], rows)


def fleet(result: FleetResult) -> Iterator[str]:
    yield from targets("demo policy, int4, replicas on one machine's cores", result.targets)
    yield ""
    answered = [load.round_trip.count for load in (result.undisturbed, result.killed)]
    back = ", ".join(f"{each:.1f}" for each in result.back_s)
    yield (
        f"{result.replicas} replicas, {len(result.killed.robots)} robots back to back: {answered[0]} actions "
        f"undisturbed, {answered[1]} while {result.kills} replicas were killed; {result.lost} observations answered as "
        f"lost, replicas back after {back} s."
    )


def fuzz(result: FuzzResult) -> Iterator[str]:
    columns = ["wire form", "messages", "read", "refused", "kinds of refusal", "crashes", "slowest", "peak memory"]
    yield from table(
        columns,
        [
            (
                name,
                str(one.messages),
                str(one.accepted),
                str(sum(one.refused.values())),
                str(one.distinct_refusals),
                str(len(one.crashes)),
                f"{one.slowest_ms:.0f} ms",
                f"{one.peak_mib:.0f} MiB, {one.peak_mib - one.start_mib:+.0f}",
            )
            for name, one in result.forms.items()
        ],
    )
