"""When an action counts as stale or missing, and what ends that. Pure: times are given, in monotonic seconds.

Watches from the first fresh action after a reset on: before it the robot is at rest. Knows no limiter and no motor.
"""

from __future__ import annotations

import math
from typing import Literal

from edge_vla.robot.units import Lapse

Watch = Literal["waiting", "running", "lapsed"]


class Watchdog:
    """One robot's deadline. `seconds` after a fresh action the next one is missing."""

    def __init__(self, lapse: Lapse, seconds: float) -> None:
        self.seconds, self._needed = seconds, lapse.recover
        self.lapses = 0
        self.reset()

    def reset(self) -> None:
        """Whatever lapsed is over: wait for a first action."""
        self.state: Watch = "waiting"
        self.reason = ""
        self.latched = False  # until a reset, whatever comes
        self._last = -math.inf
        self._row = 0

    def feed(self, now: float, valid_until: float | None = None) -> bool:
        """An action has come, to be started before `valid_until`. Whether it may pass."""
        self.check(now)
        if valid_until is not None and not now < valid_until:
            self.lapse(f"an action came {1e3 * (now - valid_until):.0f} ms after it was valid")
            return False
        in_time = now - self._last <= self.seconds
        self._last = now
        if self.state == "lapsed":
            self._row = self._row + 1 if in_time else 1
            if self.latched or self._row < self._needed:
                return False
            self.reason = ""
        self.state = "running"
        return True

    def check(self, now: float) -> bool:
        """Whether an action is missing since just now; says so once a lapse."""
        if self.state != "running" or now - self._last <= self.seconds:
            return False
        self.lapse(
            f"no fresh action for {1e3 * (now - self._last):.0f} ms, at most {1e3 * self.seconds:.0f} are allowed"
        )
        return True

    def lapse(self, reason: str, *, latch: bool = False) -> None:
        """No action passes from now on: until enough fresh ones came in a row, or with `latch` until a reset."""
        self._row = 0
        news = self.state != "lapsed" or (latch and not self.latched)
        self.latched |= latch or self._needed == 0
        self.state = "lapsed"
        if news:
            self.reason = reason
            self.lapses += 1

    def left(self, now: float) -> float | None:
        """Seconds until `check` has something to say; None while nothing can be missing."""
        return max(0.0, self._last + self.seconds - now) if self.state == "running" else None
