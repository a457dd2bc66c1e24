"""The scripted expert: the next action from a state and a task, without memory.

Far from its goal it moves at full speed, near it in proportion to the distance left, so that every label is a
continuous function of what the picture shows. Knows nothing of pixels or words.
"""

import math
from typing import Final

import numpy as np

from edge_vla.demo.world import GRASP_HEIGHT, Action, State, Task

SPEED: Final = 0.030  # metres a step, per axis
TURN: Final = 0.16  # radians a step, per axis
CARRY_HEIGHT: Final = 0.125
PLACE_HEIGHT: Final = 0.030
HOME: Final = (0.0, 0.0)


def _toward(error: float, gain: float, limit: float) -> float:
    return max(-limit, min(limit, gain * error))


def _funnel(distance: float, floor: float, slack: float) -> float:
    """Target height: `floor` over the goal, rising with distance up to the carrying height."""
    return min(CARRY_HEIGHT, floor + max(0.0, distance - slack) * 2.0)


def _move(state: State, x: float, y: float, z: float, yaw: float, opening: float, gain: float = 0.55) -> Action:
    g = state.gripper
    return np.array(
        [
            _toward(x - g.x, gain, SPEED),
            _toward(y - g.y, gain, SPEED),
            _toward(z - g.z, 0.6, SPEED),
            _toward(-g.roll, 0.45, TURN),
            _toward(-g.pitch, 0.45, TURN),
            _toward(yaw - g.yaw, 0.45, TURN),
            opening,
        ],
        dtype=np.float64,
    )


def act(state: State, task: Task) -> Action:
    """The next action (7,). The task's block must be on the table or in the gripper."""
    g = state.gripper
    target_index = state.find("block", task.block)
    target = state.bodies[target_index]
    if state.held == target_index:
        if task.plate is None:
            return _move(state, *HOME, CARRY_HEIGHT, 0.0, opening=0.0, gain=0.2)
        plate = state.bodies[state.find("plate", task.plate)]
        away = math.hypot(plate.x - g.x, plate.y - g.y)
        low = g.z - PLACE_HEIGHT < 0.014
        opening = 1.0 if away < 0.016 and low else 0.0
        return _move(state, plate.x, plate.y, _funnel(away, PLACE_HEIGHT - 0.004, 0.008), 0.0, opening)
    away = math.hypot(target.x - g.x, target.y - g.y)
    rise = g.z - GRASP_HEIGHT
    straight = max(abs(g.roll), abs(g.pitch)) < 0.13 and abs(target.yaw - g.yaw) < 0.20
    there = away < 0.010 and rise < 0.011 and straight
    opening = 0.0 if there else min(1.0, 0.55 + 2.5 * math.hypot(away, rise))
    return _move(state, target.x, target.y, _funnel(away, GRASP_HEIGHT - 0.002, 0.006), target.yaw, opening)
