"""A robot, an instruction and pictures that several tests share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROBOT = """
name = "arm-1"
actions = "delta"
period_ms = 50

[policy]
units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
gripper = { open = 1.0, closed = 0.0 }

[robot]
units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]
gripper = { open = 1.0, closed = 0.0 }

[gripper]
at_rest = "open"

[limits]
low = [-1, -1, -1, -3, -3, -3]
high = [1, 1, 1, 3, 3, 3]

[camera]
max_age_ms = 5000

[watchdog]
on_stale = "hold"
after_ms = 8000
recover = 1
"""
# What a real robot would declare; the patient one above is for tests that a busy machine must not fail.
IMPATIENT = ROBOT.replace("max_age_ms = 5000", "max_age_ms = 400").replace("after_ms = 8000", "after_ms = 500")
JOINTS = ROBOT.replace('"m", "m", "m"', '"rad", "rad", "rad"').replace('"delta"', '"absolute"')
INSTRUCTION = "pick up the red block"


def pictures(count: int) -> NDArray[np.uint8]:
    """(count, 48, 64, 3): every one another."""
    return np.random.default_rng(16).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
