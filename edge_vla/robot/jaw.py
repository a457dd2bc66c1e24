"""A gripper: inside its range, and open or closed only once enough actions in a row agree."""

from __future__ import annotations

from typing import Final

from edge_vla.robot.units import Grip, Jaws


class Jaw:
    """One gripper's memory: the last value sent, and how many actions in a row have asked for the other half."""

    def __init__(self, jaws: Jaws, grip: Grip) -> None:
        self.low: Final = min(jaws.open, jaws.closed)
        self.high: Final = max(jaws.open, jaws.closed)
        self._middle = (jaws.open + jaws.closed) / 2
        self._at_rest = jaws.open if grip.at_rest == "open" else jaws.closed
        self._needed = grip.debounce
        self.start()

    def start(self) -> None:
        """An episode begins: the gripper is as it was declared to be at rest."""
        self.value, self._agreeing = self._at_rest, 0
        self._before = self.value

    def follow(self, target: float) -> float:
        """What to send for a finite `target`: itself within the range, or the last value until enough have agreed."""
        self._before = self.value
        target = min(max(target, self.low), self.high)
        if self._upper(target) == self._upper(self.value):
            self._agreeing = 0
        else:
            self._agreeing += 1
            if self._agreeing < self._needed:
                return self.value
            self._agreeing = 0
        self.value = target
        return target

    def take_back(self) -> None:
        """The last value was not sent: the gripper is as it was."""
        self.value, self._agreeing = self._before, 0

    def keep(self) -> float:
        """The last value; what has agreed so far no longer counts."""
        self._agreeing = 0
        return self.value

    def _upper(self, value: float) -> bool:
        return value > self._middle or (value == self._middle and self.value > self._middle)
