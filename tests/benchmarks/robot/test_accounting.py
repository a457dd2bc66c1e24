"""The accounts of a run under faults: what no fault explains is found, and so is a command that nobody sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.robot.accounting import Line, result
from benchmarks.robot.faults import FAULTS, Injected, Site
from edge_vla.robot.receiver import Command

START = 1000.0
FROZEN, CUT = FAULTS[0], FAULTS[1]
TIMES = {"count": 1, "p50": 1.0, "p99": 1.0, "most": 1.0}


def tick(number: int, missed: str = "", value: float = 0.0) -> Line:
    return {"kind": "tick", "number": number, "at_s": 0.2 * number, "missed": missed, "sent": [value or float(number)]}


def lapse(at_s: float, reason: str) -> Line:
    return {"kind": "lapse", "at_s": at_s, "reason": reason}


def log(*lines: Line) -> list[Line]:
    end = {"kind": "end", "acted": 0, "missed": {}, "action_ms": TIMES, "policy_ms": TIMES, "age_ms": TIMES}
    return [{"kind": "start", "monotonic": START}, *lines, end]


def site(*taken: tuple[float, int, float]) -> Site:
    """(seconds since the start, number, value) of each."""
    commands = [(START + at, Command("action", number, 10**6, 0, None, (value,))) for at, number, value in taken]
    found = SimpleNamespace(
        taken=commands,
        receiver=SimpleNamespace(refused={}),
        relay=SimpleNamespace(connections=1),
        table=SimpleNamespace(outcomes=[]),
    )
    return cast(Site, found)


def measured(lines: list[Line], here: Site, injected: list[Injected]) -> dict[str, Any]:
    body = result(lines, here, injected, 1.0)
    names = ("beyond", "wrong", "during", "held", "else")
    found = dict(zip(names, (target.measured for target in body.targets), strict=True))
    return found | {"unheard": body.unheard, "rows": body.faults}


FAULT = [Injected(FROZEN, START + 1.0, START + 4.0)]


def test_a_fault_explains_its_own_misses_and_no_others() -> None:
    lines = log(
        tick(0),
        tick(10, "camera frozen"),
        lapse(2.0, "camera frozen"),
        tick(21, "held"),
        tick(22, "late"),
        tick(60, "camera frozen"),
    )
    found = measured(lines, site((0.05, 1, 0.0)), FAULT)
    assert (found["beyond"], found["held"], found["else"]) == (2.0, 1.0, 0.0)
    assert found["rows"][0].misses == {"camera frozen": 1, "held": 1, "late": 1}


def test_a_lapse_for_another_reason_is_no_success() -> None:
    found = measured(log(lapse(2.0, "link cut"), lapse(30.0, "camera frozen")), site(), FAULT)
    assert (found["held"], found["else"]) == (0.0, 2.0)


def test_what_a_robot_took_while_a_fault_was_known_is_counted() -> None:
    here = site((1.5, 1, 1.0), (2.9, 2, 2.0), (4.5, 3, 3.0))
    assert measured(log(tick(1), tick(2), tick(3)), here, FAULT)["during"] == 1.0


@pytest.mark.parametrize(
    ("taken", "wrong"),
    [
        ([(0.1, 1, 1.0), (0.3, 2, 2.0)], 0.0),
        ([(0.1, 1, 1.0)], 1.0),  # one did not arrive
        ([(0.1, 1, 1.0), (0.3, 2, 2.0), (0.4, 3, 2.0)], 1.0),  # one came twice
        ([(0.1, 1, 1.0), (0.3, 2, 2.5)], 2.0),  # one was another
        ([(0.1, 2, 1.0), (0.3, 1, 2.0)], 1.0),  # numbers fell
    ],
)
def test_a_command_that_differs_is_wrong(taken: list[tuple[float, int, float]], wrong: float) -> None:
    assert measured(log(tick(1), tick(2)), site(*taken), FAULT)["wrong"] == wrong


def test_a_command_that_arrived_unheard_is_none_while_the_link_was_cut() -> None:
    cut = [Injected(CUT, START + 1.0, START + 3.0)]
    here = site((0.1, 1, 1.0), (1.05, 2, 9.0), (4.0, 3, 3.0))
    found = measured(log(tick(1), tick(5, "link silent"), tick(20, value=3.0)), here, cut)
    assert (found["unheard"], found["wrong"]) == (1, 0.0)
