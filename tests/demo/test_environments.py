"""The demo worlds as environments: rows in the order of starts, ticks for slow policies, unknown tasks refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_vla.bench.environments import Environment, resolve
from edge_vla.demo.environments import DemoEnvironment, world1, world2
from edge_vla.demo.world import EVALUATION_SEEDS, MAX_STEPS
from edge_vla.errors import UsageError


@dataclass
class Answer:
    values: Any


@dataclass
class Still:
    """A policy that never moves; it counts how often it was asked, and with which statistics."""

    asked: int = 0
    key: str | None = None

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Answer:
        self.asked, self.key = self.asked + 1, unnorm_key
        return Answer(np.array([0, 0, 0, 0, 0, 0, 1.0]))


def test_they_are_found_by_name() -> None:
    found = resolve("edge_vla.demo.environments:world2")
    assert found is world2
    assert isinstance(found, Environment)
    assert (world1.name, world2.name) == ("demo world 1", "demo world 2")


def test_rows_are_in_the_order_of_starts() -> None:
    policy = Still()
    rows = world1.run(policy, "put", 3, 2, unnorm_key="key")
    assert [row.seed for row in rows] == list(EVALUATION_SEEDS[3:5])
    assert {(row.task, row.success, row.wrong_object, row.steps) for row in rows} == {("put", False, False, MAX_STEPS)}
    assert (policy.asked, policy.key) == (2 * MAX_STEPS, "key")


@pytest.mark.parametrize(("delays_ms", "asked"), [([1.0], 40), ([200.0], 40), ([201.0], 20), ([100.0, 500.0], 20)])
def test_a_slow_policy_acts_less_often(delays_ms: list[float], asked: int) -> None:
    """At 5 Hz an action that takes over 200 ms costs two steps; delays are used in turn."""
    policy = Still()
    (row,) = DemoEnvironment(1).run(policy, "pick", 0, 1, delays_ms=delays_ms)
    assert (policy.asked, row.steps) == (asked, MAX_STEPS)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UsageError, match="'stack' in demo world 1: choose one of pick, put"):
        world1.run(Still(), "stack", 0, 1)
