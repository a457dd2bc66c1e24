"""What each robot did in the last minute, for people who look at the live page. Bounded, in memory only, no images."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.messages import Code, Observation, Reply
from edge_vla.serve.pace import quantile

WINDOW_S: Final = 60.0
KEPT: Final = 2000  # samples of one robot
CODES: Final = tuple(Code)


class Watcher(Protocol):
    """Who looks on while observations are served. Called on the event loop: it must not wait."""

    def answered(self, observation: Observation, reply: Reply, /) -> None: ...

    def refused(self, robot: str, code: Code, /) -> None: ...

    def reset(self, robot: str, /) -> None: ...

    def left(self, robot: str, /) -> None: ...


@dataclass(frozen=True)
class RobotView:
    """One robot's last minute. Times in milliseconds, None where nothing was answered."""

    robot: str
    hz: float
    p50_ms: float | None
    p99_ms: float | None
    age_p50_ms: float | None
    silent_s: float
    refused: dict[str, int]
    instruction: str
    unnorm_key: str
    action: list[float]
    margins: list[float]
    latencies_ms: list[float]


class _Samples:
    """The last KEPT rows, each a time and what was seen then. All the memory it will ever need is taken at once."""

    def __init__(self, columns: int) -> None:
        self._rows: NDArray[np.float64] = np.full((KEPT, columns), -np.inf)  # so long ago that nobody asks
        self.count = 0

    def add(self, *row: float) -> None:
        self._rows[self.count % KEPT] = row
        self.count += 1

    def since(self, at: float) -> list[list[float]]:
        """The rows after that time, oldest first."""
        ordered = np.roll(self._rows, -(self.count % KEPT), axis=0)
        found: list[list[float]] = ordered[ordered[:, 0] > at].tolist()
        return found


@dataclass
class _Robot:
    answered: _Samples = field(default_factory=lambda: _Samples(3))
    refused: _Samples = field(default_factory=lambda: _Samples(2))
    heard: float = 0.0
    instruction: str = ""
    last: Reply | None = None


class Activity:
    """Keeps at most `robots` robots; the one that was silent longest makes place."""

    def __init__(self, clock: Callable[[], float], robots: int) -> None:
        self._clock, self._most = clock, robots
        self._robots: OrderedDict[str, _Robot] = OrderedDict()

    def answered(self, observation: Observation, reply: Reply) -> None:
        robot = self._robot(observation.robot)
        robot.answered.add(robot.heard, reply.queue_ms + reply.infer_ms, reply.age_ms)
        robot.instruction, robot.last = observation.instruction, reply

    def refused(self, name: str, code: Code) -> None:
        robot = self._robot(name)
        robot.refused.add(robot.heard, CODES.index(code))

    def reset(self, name: str) -> None:
        """Episodes are not shown."""

    def left(self, name: str) -> None:
        """Gone. Who asked once and left had a name for that one time, and would fill the page."""
        robot = self._robots.get(name)
        if robot is not None and robot.answered.count + robot.refused.count <= 1:
            del self._robots[name]

    def view(self) -> list[RobotView]:
        """Robots that asked within the window, by name."""
        since = self._clock() - WINDOW_S
        return [
            self._view(name, self._robots[name], since) for name in sorted(self._robots) if self._fresh(name, since)
        ]

    def _fresh(self, name: str, since: float) -> bool:
        return self._robots[name].heard > since

    def _robot(self, name: str) -> _Robot:
        robot = self._robots.pop(name, None) or _Robot()
        self._robots[name] = robot
        robot.heard = self._clock()
        while len(self._robots) > self._most:
            self._robots.popitem(last=False)
        return robot

    def _view(self, name: str, robot: _Robot, since: float) -> RobotView:
        rows = robot.answered.since(since)
        span = max(1.0, min(WINDOW_S, self._clock() - rows[0][0])) if rows else WINDOW_S
        latencies, ages = [row[1] for row in rows], [row[2] for row in rows]
        last = robot.last
        return RobotView(
            robot=name,
            hz=len(rows) / span,
            p50_ms=quantile(latencies, 0.5) if rows else None,
            p99_ms=quantile(latencies, 0.99) if rows else None,
            age_p50_ms=quantile(ages, 0.5) if rows else None,
            silent_s=self._clock() - robot.heard,
            refused=dict(Counter(CODES[int(code)].value for _, code in robot.refused.since(since))),
            instruction=robot.instruction,
            unnorm_key=last.unnorm_key if last is not None else "",
            action=last.action.tolist() if last is not None else [],
            margins=list(last.margins) if last is not None else [],
            latencies_ms=[round(each, 2) for each in latencies[-120:]],
        )
