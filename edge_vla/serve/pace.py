"""Running figures that the scheduler decides by: service time, demand, and the state of a latency target.

Pure arithmetic on times that are passed in, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final

from edge_vla.errors import UsageError

WEIGHT: Final = 0.125  # of the newest service time
OUTLIER: Final = 4.0  # times the mean: more of it is a hiccup, not the service time
UTILISATION: Final = 0.8  # above this share of capacity, waits grow without bound
WINDOW_S: Final = 1.0
CALM: Final = 0.8  # of the target; a tight target is let go after CALM_WINDOWS below it
CALM_WINDOWS: Final = 3


class ServiceTime:
    """The mean time of an action and how far it strays, both exponentially weighted as TCP weighs round trips."""

    def __init__(self, seconds: float) -> None:
        self.mean, self.deviation, self.measured = seconds, 0.0, -math.inf

    @property
    def likely(self) -> float:
        """What an action takes, nearly always."""
        return self.mean + self.deviation

    def add(self, seconds: float, now: float) -> None:
        error = min(seconds, OUTLIER * self.mean) - self.mean
        self.mean += WEIGHT * error
        self.deviation += WEIGHT * (abs(error) - self.deviation)
        self.measured = now

    def stale(self, now: float) -> bool:
        """Whether nothing was measured for so long that one hiccup may be all that the figure still shows."""
        return now - self.measured > max(WINDOW_S, 4 * self.mean)


class Rate:
    """Events per second, the last `window` seconds counting most."""

    def __init__(self, window: float) -> None:
        self.window = window
        self._rate, self._at = 0.0, 0.0

    def add(self, now: float) -> None:
        self._rate, self._at = self.at(now) + 1 / self.window, now

    def at(self, now: float) -> float:
        return self._rate * math.exp(-(now - self._at) / self.window)


@dataclass(frozen=True)
class Slo:
    """A latency that all but 1 - `quantile` of the replies are to keep."""

    quantile: float
    seconds: float

    @staticmethod
    def parse(text: str) -> Slo:
        """From "p99=150ms" or "p95=0.2s"; UsageError for anything else."""
        found = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)", text.strip())
        if found is None or not float(found[1]) or not float(found[2]):
            raise UsageError(f"--slo {text}: expected a percentile and a time, for example p99=150ms")
        return Slo(float(found[1]) / 100, float(found[2]) * (1e-3 if found[3] == "ms" else 1))


@dataclass
class SloGuard:
    """Tight from the first window whose quantile misses the target until CALM_WINDOWS in a row are well below it."""

    slo: Slo
    tight: bool = False
    _calm: int = 0
    _opened: float = 0.0
    _latencies: list[float] = field(default_factory=list)

    def add(self, latency: float, now: float) -> None:
        self.advance(now)
        self._latencies.append(latency)

    def advance(self, now: float) -> None:
        """Close the windows that are over. Those in which nothing was answered are calm."""
        windows = int((now - self._opened) / WINDOW_S)
        if windows < 1:
            return
        found = quantile(self._latencies, self.slo.quantile)
        if found > self.slo.seconds:
            self.tight, self._calm = True, 0
        elif found <= CALM * self.slo.seconds:
            self._calm += 1
        else:
            self._calm = 0
        self._calm += windows - 1
        if self._calm >= CALM_WINDOWS:
            self.tight = False
        self._latencies.clear()
        self._opened += windows * WINDOW_S


def quantile(values: list[float], q: float) -> float:
    """The smallest value that at least a share `q` of them do not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)] if values else 0.0


def sustained(seconds: float, hertz: float) -> int:
    """How many robots that ask `hertz` times a second this service time sustains with bounded waits."""
    return int(UTILISATION / seconds / hertz + 1e-9)
