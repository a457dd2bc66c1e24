"""The demo world as a camera and a robot of `edge-vla act`: one table after another, as long as somebody acts.

Its camera has noise, as every camera has: a picture that is the same to the last bit is a frozen one.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, render, world
from edge_vla.demo.world import EVALUATION_SEEDS, MAX_STEPS, State, Task, start, step, verdict
from edge_vla.robot.faces import Command, Picture

DECLARATION: Final = Path(__file__).with_name("robot.toml")
NOISE: Final = 2  # of 255, at most


class Table:
    """A world, its tables and what became of each. Calls from several threads take turns.

    `block` asks for the block of that colour on every table, in always the same words; else each table has its task.
    """

    def __init__(self, number: int = 1, block: str | None = None, seed: int = 0) -> None:
        self._world, self._block = world(number), block
        self._noise = np.random.default_rng(seed)
        self._seeds = iter(EVALUATION_SEEDS[seed:])
        self._lock = threading.Lock()
        self.outcomes: list[str] = []
        self._steps = 0
        self._state, self._task, self.instruction = self._next()

    def picture(self) -> NDArray[np.uint8]:
        """What the camera sees now, (H, W, 3) uint8 RGB."""
        with self._lock:
            state = self._state
            noise = self._noise.integers(-NOISE, NOISE + 1, (IMAGE_SIDE, IMAGE_SIDE, 3))
        clean = np.asarray(render(state, self._world)).astype(np.int64)
        noisy: NDArray[np.uint8] = np.clip(clean + noise, 0, 255).astype(np.uint8)
        return noisy

    def act(self, values: NDArray[np.float64], *, asked: bool = True) -> None:
        """Move by (7,) values; `asked` False for those on the way to rest, which are no step of the policy's."""
        with self._lock:
            self._state = step(self._state, values)
            self._steps += asked
            found = verdict(self._state, self._task)
            if found != "running" or self._steps >= MAX_STEPS:
                self.outcomes.append(found if found != "running" else "out of time")
                self._steps = 0
                self._state, self._task, self.instruction = self._next()

    def _next(self) -> tuple[State, Task, str]:
        """Another table, and what is asked on it."""
        while True:
            seed = next(self._seeds)
            state, task = start(seed, "pick")
            if self._block is None:
                return state, task, phrase(task, seed)
            if any(body.kind == "block" and body.colour == self._block for body in state.bodies):
                task = Task(self._block)
                return state, task, phrase(task, 0)


class TableCamera:
    """The table's picture at the moment when it is looked at."""

    name = "demo"

    def __init__(self, table: Table) -> None:
        self._table, self._number = table, 0

    def newest(self, after: int, until: float) -> Picture:  # noqa: ARG002 - there is always a new one
        taken = time.monotonic()
        self._number = max(self._number, after) + 1
        return Picture(self._table.picture(), taken, self._number)

    def close(self) -> None:
        """Nothing is held."""


class TableArm:
    """The table's arm, which takes every command at once."""

    name = "demo"

    def __init__(self, table: Table) -> None:
        self._table = table

    def ready(self) -> None:
        """Always."""

    def send(self, command: Command) -> None:
        self._table.act(command.values, asked=command.kind == "action")

    def close(self) -> None:
        """Nothing is held."""
