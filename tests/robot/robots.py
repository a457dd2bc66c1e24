"""Declarations that several tests share, as a user would write them."""

from __future__ import annotations

import dataclasses
from typing import Any

from edge_vla.robot.units import Bounds, Declaration, Grip, Jaws, Lapse, Meaning

EXAMPLE = """
name = "arm-1"
actions = "delta"
period_ms = 200

[policy]
units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
gripper = { open = 1.0, closed = 0.0 }

[robot]
units = ["mm", "mm", "mm", "deg", "deg", "deg", "gripper"]
gripper = { open = -1.0, closed = 1.0 }

[gripper]
at_rest = "open"
debounce = 3

[limits]
bounds = "statistics"
step = [20, 20, 20, 5, 5, 5]
jerk = [10, 10, 10, 2.5, 2.5, 2.5]

[workspace]
low = [-200, -200, -100]
high = [200, 200, 300]
relative_to = "start"
axes = "base"

[watchdog]
on_stale = "hold"
recover = 3
"""

LINE = Declaration(  # one moving dimension and a gripper, the same units on both ends
    name="line",
    actions="delta",
    period_ms=100.0,
    policy=Meaning(("m", "gripper"), Jaws(1.0, 0.0)),
    robot=Meaning(("m", "gripper"), Jaws(1.0, 0.0)),
    limits=Bounds(low=(-0.1,), high=(0.1,), step=(0.02,), jerk=(0.01,)),
    watchdog=Lapse("hold"),
    gripper=Grip("open"),
)


def line(**changes: Any) -> Declaration:
    return dataclasses.replace(LINE, **changes)
