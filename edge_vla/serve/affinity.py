"""Which replica a robot is served by, and what a machine has for each. Pure logic: no loop, no network, no clock.

A robot stays where its drafts and its newest observation are. It moves when its replica is down, or to even out the
replicas: only while nothing of it is under way, so that no two of them ever have an observation of the same robot.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

UNEVEN = 2  # robots more than another replica has: then one moves


class Places:
    """Robots by replica; replicas are numbered from 0. Remembers at most `robots` robots, the latest to ask."""

    def __init__(self, robots: int) -> None:
        self._most = robots
        self._up = set[int]()
        self._of: OrderedDict[str, int] = OrderedDict()
        self._robots: Counter[int] = Counter()

    @property
    def known(self) -> int:
        """Robots that have a place."""
        return len(self._of)

    @property
    def up(self) -> frozenset[int]:
        return frozenset(self._up)

    def at(self, robot: str) -> int | None:
        """Where a robot is; None for one that has no place, or whose replica is down."""
        return self._of.get(robot)

    def raise_up(self, replica: int) -> None:
        """A replica is ready."""
        self._up.add(replica)

    def take_down(self, replica: int) -> None:
        """A replica is gone, and with it what it kept: its robots have no place."""
        self._up.discard(replica)
        for robot in [robot for robot, at in self._of.items() if at == replica]:
            self.leave(robot)

    def place(self, robot: str, *, busy: bool) -> int | None:
        """Where this robot's next observation goes; None when every replica is down.

        `busy`: an earlier one is under way. Then it goes to the same replica, where the newer supersedes the older.
        """
        if not self._up:
            return None
        at, least = self._of.get(robot), min(self._up, key=lambda replica: (self._robots[replica], replica))
        if at is None or (not busy and self._robots[at] >= self._robots[least] + UNEVEN):
            self.leave(robot)
            self._robots[least] += 1
            self._of[robot] = at = least
        self._of.move_to_end(robot)
        while len(self._of) > self._most:
            self.leave(next(iter(self._of)))
        return at

    def leave(self, robot: str) -> None:
        """A robot is gone."""
        at = self._of.pop(robot, None)
        if at is not None:
            self._robots[at] -= 1


def share(cpus: Sequence[int], replicas: int) -> int:
    """The most CPUs that each replica can have, given those of each machine; 0 where they do not all fit."""
    return next((each for each in range(max(cpus, default=0), 0, -1) if sum(n // each for n in cpus) >= replicas), 0)
