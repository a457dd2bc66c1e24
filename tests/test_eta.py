"""What is left is foretold from what is done, stage by stage."""

from __future__ import annotations

import pytest

from edge_vla.eta import Forecast

COSTS = {"forward": (4, 1.0), "back": (4, 4.0), "decoder": (4, 10.0)}


class Watch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_true_where_the_costs_are_true() -> None:
    watch = Watch()
    forecast = Forecast(COSTS, watch)
    assert forecast.left() is None
    whole = 3 * sum(steps * cost for steps, cost in COSTS.values())
    for name, (steps, cost) in COSTS.items():
        forecast.stage(name, steps)
        for _ in range(steps):
            watch.seconds += 3 * cost
            forecast.step()
            assert forecast.left() == pytest.approx(whole - watch.seconds)


def test_a_stage_that_takes_longer_corrects_itself() -> None:
    watch = Watch()
    forecast = Forecast(COSTS, watch)
    forecast.stage("forward", 4)
    for _ in range(4):
        watch.seconds += 1
        forecast.step()
    forecast.stage("back", 4)
    watch.seconds += 8  # twice what was planned
    forecast.step()
    rate = 12 / 8
    assert forecast.left() == pytest.approx(3 * 8 + rate * 40)


def test_what_was_done_before_costs_nothing_now() -> None:
    watch = Watch()
    forecast = Forecast(COSTS, watch)
    forecast.stage("forward", 0)
    forecast.stage("back", 0)
    assert forecast.left() is None
    forecast.stage("decoder, resumed at layer 3", 1)
    watch.seconds += 7
    forecast.step()
    assert forecast.left() == 0


def test_a_stage_that_nobody_planned() -> None:
    watch = Watch()
    forecast = Forecast({}, watch)
    forecast.stage("decoder", 2)
    watch.seconds += 5
    forecast.step()
    assert forecast.left() is None
