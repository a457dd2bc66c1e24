"""Every turn of the loop's log against the injected faults, and every command that the robot took against the log."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.robot.faults import FAULTS, LINK, Fault, Injected, Site
from benchmarks.robot.results import FaultRow, RobotActResult
from benchmarks.study import Target
from edge_vla.robot.ticks import Percentiles

Line = dict[str, Any]  # of the loop's log


def result(lines: Sequence[Line], here: Site, injected: Sequence[Injected], minutes: float) -> RobotActResult:
    start, end = lines[0]["monotonic"], lines[-1]
    ticks = [line for line in lines if line["kind"] == "tick"]
    beyond = Counter(tick["missed"] for tick in ticks if tick["missed"] and not _explains(injected, start, tick))
    rows = [_row(fault, injected, start, lines, here) for fault in FAULTS]
    unheard, wrong = _compared(ticks, here, injected)
    lapses = [line for line in lines if line["kind"] == "lapse"]
    expected = [each for each in injected if each.fault.lapse is not None]
    right = sum(
        any(lapse["reason"] == each.fault.lapse and each.covers(start + lapse["at_s"]) for lapse in lapses)
        for each in expected
    )
    targets = [
        Target("misses beyond those injected", float(beyond.total()), "at most", 0.0),
        Target("actions that nobody sent, or twice, or that did not arrive", float(wrong), "at most", 0.0),
        Target("actions while a fault was known", float(sum(row.acted_during for row in rows)), "at most", 0.0),
        Target(
            "faults that held the robot for their own reason, of those that should",
            right / len(expected),
            "at least",
            1.0,
        ),
        Target("times that it was held for anything else", float(len(lapses) - right), "at most", 0.0),
    ]
    return RobotActResult(
        minutes=minutes,
        hertz=5.0,
        turns=len(ticks),
        acted=end["acted"],
        missed=end["missed"],
        beyond=dict(beyond),
        faults=rows,
        taken=sum(command.kind == "action" for _, command in here.taken),
        unheard=unheard,
        refused=dict(here.receiver.refused),
        wrong=wrong,
        connections=here.relay.connections,
        action_ms=Percentiles(**end["action_ms"]),
        policy_ms=Percentiles(**end["policy_ms"]),
        age_ms=Percentiles(**end["age_ms"]),
        outcomes=dict(Counter(here.table.outcomes)),
        priority=priority(),
        load_average=[round(each, 2) for each in os.getloadavg()],
        targets=targets,
    )


def _explains(injected: Sequence[Injected], start: float, tick: Line) -> bool:
    """Whether a turn's miss is what one of the faults does, at its time."""
    return any(
        each.covers(start + tick["at_s"]) and tick["missed"] in (*each.fault.reasons, "held") for each in injected
    )


def _row(fault: Fault, injected: Sequence[Injected], start: float, lines: Sequence[Line], here: Site) -> FaultRow:
    mine = [each for each in injected if each.fault is fault]

    def within(kind: str) -> list[Line]:
        return [
            line for line in lines if line["kind"] == kind and any(one.covers(start + line["at_s"]) for one in mine)
        ]

    return FaultRow(
        name=fault.name,
        injected=len(mine),
        seconds=fault.seconds,
        lapses=dict(Counter(line["reason"] for line in within("lapse"))),
        misses=dict(Counter(line["missed"] for line in within("tick") if line["missed"])),
        acted_during=sum(
            command.kind == "action" and one.began + fault.known_s <= at <= one.ended
            for at, command in here.taken
            for one in mine
            if fault.known_s is not None
        ),
    )


def _compared(ticks: Sequence[Line], here: Site, injected: Sequence[Injected]) -> tuple[int, int]:
    """Actions that arrived unheard, while the link had a fault; and all others that differ from what the loop sent."""
    sent = [tuple(tick["sent"]) for tick in ticks if not tick["missed"]]
    links = [each for each in injected if each.fault.reasons == LINK]
    taken = [(at, command) for at, command in here.taken if command.kind == "action"]
    numbers = [command.number for _, command in here.taken]
    wrong = sum(after <= before for before, after in itertools.pairwise(numbers))
    unheard = reached = 0
    for at, command in taken:
        if reached < len(sent) and command.values == sent[reached]:
            reached += 1
        elif any(each.covers(at) for each in links):
            unheard += 1
        else:
            wrong += 1
    return unheard, wrong + len(sent) - reached


def priority() -> str:
    """How the system's scheduler treats this process."""
    policy, niceness = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    named = {os.SCHED_RR: "SCHED_RR", os.SCHED_FIFO: "SCHED_FIFO"}
    return f"{named[policy]} {os.sched_getparam(0).sched_priority}" if policy in named else f"nice {niceness}"
