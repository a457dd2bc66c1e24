"""The remaining time follows from the steps that are done, stage by stage."""

from __future__ import annotations

import pytest

from edge_vla.eta import Eta

COSTS = {"forward": (4, 1.0), "back": (4, 4.0), "decoder": (4, 10.0)}


class Watch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_exact_where_the_costs_are_exact() -> None:
    watch = Watch()
    eta = Eta(COSTS, watch)
    assert eta.remaining() is None
    whole = 3 * sum(steps * cost for steps, cost in COSTS.values())
    for name, (steps, cost) in COSTS.items():
        eta.stage(name, steps)
        for _ in range(steps):
            watch.seconds += 3 * cost
            eta.step()
            assert eta.remaining() == pytest.approx(whole - watch.seconds)


def test_a_stage_that_takes_longer_corrects_itself() -> None:
    watch = Watch()
    eta = Eta(COSTS, watch)
    eta.stage("forward", 4)
    for _ in range(4):
        watch.seconds += 1
        eta.step()
    eta.stage("back", 4)
    watch.seconds += 8  # twice what was planned
    eta.step()
    rate = 12 / 8
    assert eta.remaining() == pytest.approx(3 * 8 + rate * 40)


def test_steps_of_a_resumed_export_cost_nothing() -> None:
    watch = Watch()
    eta = Eta(COSTS, watch)
    eta.stage("forward", 0)
    eta.stage("back", 0)
    assert eta.remaining() is None
    eta.stage("decoder", 1)
    watch.seconds += 7
    eta.step()
    assert eta.remaining() == 0


def test_a_stage_that_was_not_planned() -> None:
    watch = Watch()
    eta = Eta({}, watch)
    eta.stage("decoder", 2)
    watch.seconds += 5
    eta.step()
    assert eta.remaining() is None
