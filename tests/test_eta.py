"""The remaining time is told only where it is right to within two, and soon enough to be of use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.checkpoint import open_checkpoint
from edge_vla.eta import Costs, Eta, Step, in_words
from edge_vla.export.duration import stage_costs
from edge_vla.spec import OPENVLA_7B
from tests.conftest import TINY

COSTS: Costs = {"forward": [Step(1.0)] * 8, "back": [Step(4.0)] * 8, "decoder": [Step(10.0)] * 8}


class Watch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Seen:
    """After a step: the share of time that is over, what is left, and what was told."""

    over: float
    left: float
    told: float | None


def follow(costs: Costs, taken: Mapping[str, Sequence[float]]) -> Iterator[Seen]:
    """An export whose steps take so many seconds."""
    watch, whole = Watch(), sum(map(sum, taken.values()))
    eta = Eta(costs, watch)
    for name, seconds in taken.items():
        eta.stage(name, len(seconds))
        for one in seconds:
            watch.seconds += one
            eta.step()
            yield Seen(watch.seconds / whole, whole - watch.seconds, eta.remaining())


def laws(costs: Costs) -> st.SearchStrategy[Mapping[str, Sequence[float]]]:
    """A machine's speed, stages within 1.5 of each other, a first step of many up to thrice as slow, fixed seconds as
    planned or up to half as long again, and a twentieth of noise."""

    def times(
        machine: float, stages: Sequence[float], first: Sequence[float], fixed: float, noise: Sequence[float]
    ) -> Mapping[str, Sequence[float]]:
        found = {}
        for (name, steps), rate, slow in zip(costs.items(), stages, first, strict=True):
            found[name] = [
                (step.work * machine * rate * (slow if number == 0 and len(steps) > 3 else 1.0) + step.fixed * fixed)
                * noise[number % len(noise)]
                for number, step in enumerate(steps)
            ]
        return found

    each = len(costs)
    return st.builds(
        times,
        st.floats(0.05, 50),
        st.lists(st.floats(1, 1.5), min_size=each, max_size=each),
        st.lists(st.floats(1, 3), min_size=each, max_size=each),
        st.floats(0.8, 1.5),
        st.lists(st.floats(0.95, 1.05), min_size=5, max_size=5),
    )


PLANS: Mapping[str, Costs] = {
    "three stages": COSTS,
    "7B, rounded to nearest": stage_costs(OPENVLA_7B, 0, 0, None),
    "tiny": stage_costs(open_checkpoint(TINY).config.spec, 0, 0, None),
    "long graph": {
        "decoder": [Step(0.1)] * 4,
        "vision": [Step(0.01), Step(1.0, 10.0), Step(0.2)],
        "golden": [Step(1.0)],
    },
}


@pytest.mark.parametrize("plan", PLANS)
@given(data=st.data())
def test_what_is_told_is_right_to_within_two(plan: str, data: st.DataObject) -> None:
    for seen in follow(PLANS[plan], data.draw(laws(PLANS[plan]))):
        if seen.told is not None and max(seen.told, seen.left) > 2:
            assert seen.left / 2.1 <= seen.told <= seen.left * 2.1


@given(laws(COSTS))
def test_it_is_told_for_the_rest_once_every_stage_was_seen(taken: Mapping[str, Sequence[float]]) -> None:
    assert all(seen.told is not None for seen in follow(COSTS, taken) if seen.over > 0.6)


def test_exact_where_the_costs_are_exact() -> None:
    taken = {name: [3 * step.work for step in steps] for name, steps in COSTS.items()}
    told = [seen for seen in follow(COSTS, taken) if seen.told is not None]
    assert told[0].over < 0.15
    assert all(seen.told == pytest.approx(seen.left) for seen in told if seen.over > 0.5)


def test_nothing_is_told_after_one_step() -> None:
    assert [seen.told for seen in follow(COSTS, {"forward": [3.0]})] == [None]


def test_ten_seconds_of_a_tiny_export_are_not_45_minutes() -> None:
    """Its layers take 500 times their work, because every step has a price of its own; tracing the graph does not."""
    costs = PLANS["tiny"]
    work = sum(step.work for step in costs["decoder"])
    taken = {
        "decoder": [500 * step.work for step in costs["decoder"]],
        "vision": [0.1, 8.0, 0.1],
        "golden frame": [0.3],
    }
    assert work < 0.01
    told = [seen.told for seen in follow(costs, taken) if seen.told is not None]
    assert told
    assert max(told) < 20


def test_the_clock_runs_within_a_step() -> None:
    watch = Watch()
    eta = Eta({"decoder": [Step(1.0)] * 10}, watch)
    eta.stage("decoder", 10)
    for _ in range(5):
        watch.seconds += 10
        eta.step()
    assert eta.remaining() == pytest.approx(50)
    watch.seconds += 4
    assert eta.remaining() == pytest.approx(46)
    watch.seconds += 26  # a step of 30 seconds where each took 10
    assert eta.remaining() is not None
    for _ in range(5):
        eta.step()
    assert eta.remaining() == 0


def test_a_late_last_step_is_not_told() -> None:
    watch = Watch()
    eta = Eta({"decoder": [Step(1.0)] * 3}, watch)
    eta.stage("decoder", 3)
    for _ in range(2):
        watch.seconds += 10
        eta.step()
    watch.seconds += 12
    assert eta.remaining() is None


def test_steps_of_a_resumed_export_cost_nothing() -> None:
    watch = Watch()
    eta = Eta(COSTS, watch)
    eta.stage("forward", 0)
    eta.stage("back", 0)
    assert eta.remaining() is None
    eta.stage("decoder", 3)
    for _ in range(2):
        watch.seconds += 7
        eta.step()
    assert eta.remaining() == pytest.approx(7)


def test_a_stage_that_was_not_planned() -> None:
    watch = Watch()
    eta = Eta(COSTS, watch)
    eta.stage("elsewhere", 2)
    watch.seconds += 5
    eta.step()
    assert eta.remaining() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "a few seconds left"), (43, "about 45 s left"), (200, "about 3 min left"), (9000, "about 2.5 h left")],
)
def test_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
