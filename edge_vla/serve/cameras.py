"""Cameras that seem dead: the same picture again and again, or a black one. Counted; refused where that is asked for.

A simulator that stands still sends equal pictures too, so nothing is refused by default. Knows pictures, and no policy.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from edge_vla.serve.messages import Code, Observation, RefusedError, Reply
from edge_vla.serve.metrics import Metrics


@dataclass
class _Last:
    checksum: int
    repeats: int = 0


class Cameras:
    """A `Watcher`. Remembers a number for each of at most `robots` robots; `reject` None: only counts."""

    def __init__(self, metrics: Metrics, robots: int, reject: int | None = None) -> None:
        self._metrics, self._most, self._reject = metrics, robots, reject
        self._last: OrderedDict[str, _Last] = OrderedDict()

    def check(self, observation: Observation) -> None:
        """Look before the policy does; E_FROZEN from the `reject`-th repeat on."""
        if self._reject is None:
            return
        repeats = self._look(observation)
        if repeats >= self._reject:
            detail = f"the same image {repeats + 1} times, bit for bit: is the camera alive?"
            raise RefusedError(Code.FROZEN, detail)

    def answered(self, observation: Observation, reply: Reply) -> None:  # noqa: ARG002
        if self._reject is None:  # nobody waits for it here
            self._look(observation)

    def refused(self, robot: str, code: Code) -> None:
        """Says nothing of a camera."""

    def reset(self, robot: str) -> None:
        """An episode may begin where the last one did."""
        self._last.pop(robot, None)

    def left(self, robot: str) -> None:
        self.reset(robot)

    def _look(self, observation: Observation) -> int:
        """How many times the robot's picture was the one before it, until now."""
        image, last = observation.image, self._last.pop(observation.robot, None)
        checksum = zlib.crc32(np.ascontiguousarray(image).data)
        repeats = last.repeats + 1 if last is not None and last.checksum == checksum else 0
        self._last[observation.robot] = _Last(checksum, repeats)
        while len(self._last) > self._most:
            self._last.popitem(last=False)
        if repeats:
            self._metrics.suspect.labels("frozen").inc()
        if not image.any():
            self._metrics.suspect.labels("black").inc()
        return repeats
