"""What one turn of the loop came to, and what all of them did: counts by reason, rates, percentiles."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from edge_vla.robot.limiter import Causes
from edge_vla.robot.watchdog import Watch

RECENT_S: Final = 10.0  # that the rate on the screen looks back
KEPT: Final = 100_000  # times, for percentiles: five hours at 5 Hz


@dataclass(frozen=True)
class Tick:
    """One turn. `missed` is why no action went out, empty where one did; `detail` says more.

    `at_s` is when it was due, since the loop began. `age_ms` is the picture's age when the robot had its action, or
    when it was given up; `policy_ms` what the policy took, `action_ms` all from the picture to the robot. `asked` and
    `sent` are in the robot's units, `causes` by dimension why they differ.
    """

    number: int
    at_s: float
    missed: str = ""
    detail: str = ""
    picture: int | None = None
    age_ms: float | None = None
    policy_ms: float | None = None
    action_ms: float | None = None
    asked: tuple[float, ...] | None = None
    sent: tuple[float, ...] | None = None
    causes: tuple[Causes, ...] | None = None
    watch: Watch = "waiting"


@dataclass(frozen=True)
class Percentiles:
    """Of `count` times in milliseconds, by nearest rank; None of none."""

    count: int
    p50: float | None
    p99: float | None
    most: float | None

    @classmethod
    def of(cls, times: Iterable[float]) -> Percentiles:
        ordered = sorted(times)
        if not ordered:
            return cls(0, None, None, None)
        p50, p99 = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.99))
        return cls(len(ordered), round(p50, 3), round(p99, 3), round(ordered[-1], 3))


@dataclass(frozen=True)
class Summary:
    """A run, or one until now. `ticks` are those that were due: each was `acted` upon or `missed` for one reason.

    `lapses` by reason; `clamps` by dimension and cause. `rate` in actions a second, over the whole of `seconds`; times
    are those of the last `KEPT` actions.
    """

    seconds: float
    ticks: int
    acted: int
    missed: Mapping[str, int]
    lapses: Mapping[str, int]
    rate: float
    action_ms: Percentiles
    policy_ms: Percentiles
    age_ms: Percentiles
    clamped: int
    clamps: Mapping[str, int]


@dataclass
class Tally:
    """Grows by a tick at a time."""

    ticks: int = 0
    acted: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    lapses: Counter[str] = field(default_factory=Counter)
    clamped: int = 0
    clamps: Counter[str] = field(default_factory=Counter)
    action_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    policy_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    age_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: Tick | None = None  # that was acted upon
    _recent: deque[float] = field(default_factory=deque)

    def add(self, tick: Tick) -> None:
        self.ticks += 1
        if tick.missed:
            self.missed[tick.missed] += 1
            return
        self.acted += 1
        self.last = tick
        if tick.at_s > 0:  # the first is at the beginning of its period, which is not over
            self._recent.append(tick.at_s)
        for times, value in (
            (self.action_ms, tick.action_ms),
            (self.policy_ms, tick.policy_ms),
            (self.age_ms, tick.age_ms),
        ):
            if value is not None:
                times.append(value)
        causes = tick.causes or ()
        self.clamped += any(causes)
        self.clamps.update(f"{i} {cause}" for i, each in enumerate(causes) for cause in each)

    def recent_rate(self, now_s: float) -> float:
        """Actions a second over the last ten, of a loop that is `now_s` old."""
        while self._recent and self._recent[0] < now_s - RECENT_S:
            self._recent.popleft()
        return len(self._recent) / max(1e-9, min(RECENT_S, now_s))

    def summary(self, seconds: float) -> Summary:
        return Summary(
            round(seconds, 3),
            self.ticks,
            self.acted,
            dict(self.missed),
            dict(self.lapses),
            round(self.acted / seconds, 3) if seconds > 0 else 0.0,
            Percentiles.of(self.action_ms),
            Percentiles.of(self.policy_ms),
            Percentiles.of(self.age_ms),
            self.clamped,
            dict(self.clamps),
        )
