"""Until when a command may start, by the robot's own clock. Pure arithmetic on times that are passed in.

A beat that left at its stamp arrived no earlier. So stamp + (valid until - arrival), by the robot's clock, is never
later than valid until, whatever the clocks show; and of all beats the one that travelled fastest comes nearest.
"""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT_S: Final = 5.0  # for which a beat stands: two clocks drift apart by half a millisecond at most
RESTARTED_S: Final = 1.0  # a stamp that is off by more is of a robot that was started again


class Freshness:
    """The beats of the last seconds."""

    def __init__(self) -> None:
        self._beats = deque[tuple[int, float]]()  # stamps in microseconds, and when each arrived in seconds

    def add(self, stamp: int, arrived: float) -> None:
        beats = self._beats
        if beats and abs((arrived - beats[-1][1]) - (stamp - beats[-1][0]) / 1e6) > RESTARTED_S:
            beats.clear()
        beats.append((stamp, arrived))
        while arrived - beats[0][1] > KEPT_S:
            beats.popleft()

    def until(self, valid_until: float) -> tuple[int, int]:
        """The beat to echo, and how many microseconds after it a command may start that is valid until then."""
        if not self._beats:
            raise ValueError("no beat has come")
        first = self._beats[0][0]
        stamp, arrived = max(self._beats, key=lambda beat: (beat[0] - first) / 1e6 - beat[1])
        return stamp, int(1e6 * (valid_until - arrived))
