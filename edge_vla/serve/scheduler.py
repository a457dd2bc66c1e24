"""Which observation the device computes next. Pure logic: no loop, no thread, no wire; the clock is passed in.

Each robot has a mailbox of one: the newest observation wins. Among robots the earliest deadline goes first, those
without one in turn, and none passes another twice while that one waits, so with N robots a wait is at most N service
times. What would be late is dropped before it costs the device anything, and its robot keeps its turn: where its next
observation is due within a service time, robots that have had theirs are held back, else one that always looks a
moment later than another would never be served. Every observation has one outcome: it is taken, or it is refused, or
its robot has gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from edge_vla.serve.messages import Code
from edge_vla.serve.pace import UTILISATION, Rate, ServiceTime, SloGuard

T = TypeVar("T")
NEVER: Final = math.inf
GAP_WEIGHT: Final = 0.25  # of the newest gap between two observations
HOLD: Final = 0.1  # of that gap: how much later than usual an observation is still waited for


@dataclass(eq=False)
class Ticket(Generic[T]):
    """One observation in the queue. Times are seconds of the scheduler's clock; no deadline is infinite."""

    robot: str
    what: T
    received: float
    deadline: float
    submitted: float = 0.0


@dataclass(frozen=True)
class Refusal(Generic[T]):
    """Why a ticket is not computed, and when asking again may help."""

    ticket: Ticket[T]
    code: Code
    detail: str
    retry_after_s: float | None = None


@dataclass
class _Robot(Generic[T]):
    """`since` and `taken` are turns: when its wait began (see `_owe`), and when it was last taken.

    `heard` is the time of its last observation, `gap` the usual time between two.
    """

    heard: float
    gap: float = NEVER
    since: int | None = None
    taken: int = -1
    ticket: Ticket[T] | None = None

    def hear(self, now: float) -> None:
        gap = now - self.heard
        self.gap = gap if self.gap == NEVER else self.gap + GAP_WEIGHT * (gap - self.gap)
        self.heard = now


class Scheduler(Generic[T]):
    """`submit`, then `take` whenever the device is free, then `finish`. Holds at most `robots` robots."""

    def __init__(
        self, clock: Callable[[], float], service_s: float, robots: int = 256, slo: SloGuard | None = None
    ) -> None:
        self.clock, self.robots, self.slo = clock, robots, slo
        self.service, self.demand = ServiceTime(service_s), Rate(max(1.0, 20 * service_s))
        self.draining = False
        self.running: Ticket[T] | None = None
        self.wake = NEVER  # when to `take` again although nothing happened
        self._began = 0.0
        self._turn = 0
        self._known: dict[str, _Robot[T]] = {}

    @property
    def depth(self) -> int:
        """Observations that wait."""
        return len(self._waiting())

    @property
    def known(self) -> int:
        """Robots whose turn is kept."""
        return len(self._known)

    def submit(self, ticket: Ticket[T]) -> list[Refusal[T]]:
        """Put a ticket into its robot's mailbox. Returns what is refused by that: it, an older one, or nothing."""
        now = self.clock()
        ticket.submitted = now
        self.demand.add(now)
        if self.draining:
            return [_shutting_down(ticket)]
        robot = self._known.get(ticket.robot)
        if robot is not None:
            robot.hear(now)
        else:
            robot = self._admit(ticket.robot, now)
        if robot is None:
            detail = f"{self.robots} robots are being served: ask again later, or start another server"
            return [Refusal(ticket, Code.OVERLOAD, detail, max(1.0, self.robots * self.service.mean))]
        older = robot.ticket
        if older is not None and older.received > ticket.received:
            return [_superseded(ticket)]
        self._tighten(ticket, now)
        robot.ticket = ticket
        if older is not None:
            robot.since = robot.taken  # asked twice for a turn: more is wanted than there is, so by the longest untaken
        elif robot.since is None:
            robot.since = self._turn
        refused = [_superseded(older)] if older is not None else []
        late = self._overload(ticket, robot, now)
        if late is not None:
            robot.ticket = None
            self._owe(robot, ticket)
            refused.append(late)
        return refused

    def take(self) -> tuple[Ticket[T] | None, list[Refusal[T]]]:
        """The next ticket for a free device, and the ones that would be late by now. Call `finish` before the next."""
        assert self.running is None, "one at a time"
        now = self.clock()
        refused = self.expire()
        waiting = self._waiting()
        self.wake = NEVER
        if not waiting:
            return None, refused
        robot = min(waiting, key=self._order(waiting))
        self.wake = self._held(robot, now)
        if self.wake < NEVER:
            return None, refused
        ticket, robot.ticket = robot.ticket, None
        self._turn += 1
        robot.taken, robot.since = self._turn, None
        self.running, self._began = ticket, now
        return ticket, refused

    def expire(self) -> list[Refusal[T]]:
        """Drop what would finish after its deadline if it began when the device is next free."""
        now = self.clock()
        start = now + self._busy(now)
        refused = []
        for robot in self._waiting():
            ticket = robot.ticket
            if ticket is None or start + self.service.likely <= ticket.deadline:
                continue
            if now < ticket.deadline and self.running is None and self.service.stale(now):
                continue  # the figure may be a hiccup's: measure again
            robot.ticket = None
            self._owe(robot, ticket)
            refused.append(_late(ticket, now, self.service.likely))
        return refused

    def finish(self, ticket: Ticket[T], seconds: float) -> None:
        """The device is free again: it spent `seconds` on this ticket."""
        assert ticket is self.running, "finish what was taken"
        now = self.clock()
        self.running = None
        self.service.add(seconds, now)
        if self.slo is not None:
            self.slo.add(now - ticket.received, now)

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Take a ticket out of the queue; False where it is there no more. What runs, runs on."""
        robot = self._known.get(ticket.robot)
        if robot is None or robot.ticket is not ticket:
            return False
        robot.ticket = robot.since = None
        return True

    def leave(self, name: str) -> Ticket[T] | None:
        """Forget a robot; returns what it had in its mailbox."""
        robot = self._known.pop(name, None)
        return None if robot is None else robot.ticket

    def drain(self) -> list[Refusal[T]]:
        """Refuse everything from now on; what runs, runs on."""
        self.draining = True
        refused = [_shutting_down(robot.ticket) for robot in self._known.values() if robot.ticket is not None]
        self._known.clear()
        return refused

    def _waiting(self) -> list[_Robot[T]]:
        return [robot for robot in self._known.values() if robot.ticket is not None]

    def _order(self, waiting: list[_Robot[T]]) -> Callable[[_Robot[T]], tuple[bool, float, int]]:
        """Earliest deadline first, but not who was taken since the longest wait began; then the longest untaken."""
        oldest = min(self._turn if robot.since is None else robot.since for robot in waiting)

        def key(robot: _Robot[T]) -> tuple[bool, float, int]:
            deadline = NEVER if robot.ticket is None else robot.ticket.deadline
            return robot.taken > oldest, deadline, robot.taken

        return key

    def _held(self, robot: _Robot[T], now: float) -> float:
        """Until when a robot that has had its turn waits for one that was refused and is due; NEVER for no wait."""
        for other in self._known.values():
            if other.ticket is None and other.since is not None and other.since < robot.taken:
                due = other.heard + other.gap
                if due - self.service.mean <= now < due + HOLD * other.gap:
                    return due + HOLD * other.gap
        return NEVER

    def _admit(self, name: str, now: float) -> _Robot[T] | None:
        """A new robot, in the place of the idle one that was taken longest ago where all places are taken."""
        if len(self._known) >= self.robots:
            running = None if self.running is None else self.running.robot
            idle = [key for key, robot in self._known.items() if robot.ticket is None and key != running]
            if not idle:
                return None
            del self._known[min(idle, key=lambda key: self._known[key].taken)]
        self._known[name] = _Robot(now)
        return self._known[name]

    def _busy(self, now: float) -> float:
        """Seconds until the device is likely free."""
        return 0.0 if self.running is None else max(0.0, self._began + self.service.mean - now)

    def _tighten(self, ticket: Ticket[T], now: float) -> None:
        """While the latency target is missed, it is everybody's deadline."""
        if self.slo is not None:
            self.slo.advance(now)
            if self.slo.tight:
                ticket.deadline = min(ticket.deadline, ticket.received + self.slo.slo.seconds)

    def _owe(self, robot: _Robot[T], ticket: Ticket[T]) -> None:
        """A refused robot waits on, since it was last taken; unless its deadline could not be met by an idle device."""
        hopeless = ticket.deadline - ticket.received < self.service.likely
        robot.since = None if hopeless else robot.taken

    def _overload(self, ticket: Ticket[T], robot: _Robot[T], now: float) -> Refusal[T] | None:
        """The admission test: under overload, what cannot be answered in time behind those before it is not queued."""
        tight = self.slo is not None and self.slo.tight
        if not tight and self.demand.at(now) * self.service.mean < UTILISATION:
            return None
        waiting = self._waiting()
        order = self._order(waiting)
        ahead = sum(order(other) <= order(robot) for other in waiting) - 1
        if not ahead and self.running is None:
            return None  # the device is free: there is nothing to wait for
        done = now + self._busy(now) + ahead * self.service.mean + self.service.likely
        if done <= ticket.deadline:
            return None
        detail = f"{ahead} before it: an answer in {1e3 * (done - now):.0f} ms would be late; ask less often"
        return Refusal(ticket, Code.OVERLOAD, detail, max(self.service.mean, done - ticket.deadline))


def _superseded(ticket: Ticket[T]) -> Refusal[T]:
    return Refusal(ticket, Code.SUPERSEDED, "a newer observation of this robot came before this one was started")


def _shutting_down(ticket: Ticket[T]) -> Refusal[T]:
    return Refusal(ticket, Code.SHUTTING_DOWN, "the server is shutting down: connect again", 1.0)


def _late(ticket: Ticket[T], now: float, likely: float) -> Refusal[T]:
    left = 1e3 * (ticket.deadline - now)
    return Refusal(
        ticket, Code.DEADLINE, f"{left:.0f} ms to its deadline, an action takes {1e3 * likely:.0f} ms: not started"
    )
