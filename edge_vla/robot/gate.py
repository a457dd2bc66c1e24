"""The only holder of a motor's `send`: an action gets through limited and in time, or the robot comes to rest.

Not a safety-rated function: it runs in a process that can be killed, on a machine that can hang. The robot needs a stop
of its own that needs neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from numpy.typing import ArrayLike

from edge_vla.errors import ResourceError, UsageError
from edge_vla.robot.bounds import Percentiles
from edge_vla.robot.faces import Kind, LinkError
from edge_vla.robot.limiter import Counters, Limited, Limiter, NotFiniteError
from edge_vla.robot.units import Declaration, Floats
from edge_vla.robot.watchdog import Watch, Watchdog

LOOK_S: Final = 0.01  # between two looks at whether it rests
Send = Callable[[Floats], None]
"""Gives a command (dims,) in the robot's units to its motors; returns when they have it."""


@dataclass(frozen=True)
class GateState:
    """`reason` of the lapse that lasts, empty without one; `latched`: only `reset` ends it."""

    watch: Watch
    latched: bool
    reason: str
    lapses: int
    refused: int
    counters: Counters


class Gate:
    """Between one policy and one robot. `act` from one thread; a second one watches the deadline.

    `on_lapse(reason)` is called once a lapse, in the thread that noticed: the place for the robot's own stop.
    """

    def __init__(
        self,
        robot: Declaration,
        send: Send,
        statistics: Percentiles | None = None,
        *,
        on_lapse: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        """`watch` False leaves out the thread: whoever has a loop of their own then calls `tick`."""
        self.limiter = Limiter(robot, statistics)
        self._robot, self._send, self._on_lapse, self._clock = robot, send, on_lapse, clock
        self._watchdog = Watchdog(robot.watchdog, robot.lapse_s)
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._refused = 0
        self.sending: Kind = "stop"  # what the values are that `send` is given, while it runs
        self._next_hold: float | None = None  # when, while it comes to rest
        self._reported = 0  # lapses
        self._stuck = self._closed = self._used = False
        self._thread = threading.Thread(target=self._run, name=f"gate {robot.name}", daemon=True) if watch else None
        if self._thread is not None:
            self._thread.start()

    @property
    def state(self) -> GateState:
        dog = self._watchdog
        return GateState(dog.state, dog.latched, dog.reason, dog.lapses, self._refused, self.limiter.counters)

    def reset(self, pose: ArrayLike | None = None) -> None:
        """An episode begins, the robot at rest at `pose` (see `Limiter.start`). Ends what lapsed."""
        with self._lock:
            if self._closed:
                raise UsageError("the gate is closed: make another one")
            self.limiter.start(pose)
            self._watchdog.reset()
            self._next_hold = None

    def act(self, values: ArrayLike, *, valid_until: float | None = None) -> Limited | None:
        """Limit an action (dims,) in the policy's units and send it; what was sent, or None while it must not pass.

        `valid_until`, in the clock's seconds, is the last moment to start it: an `Action` of the client says it.
        NotFiniteError for a NaN or an infinity, ResourceError where `send` failed: both latch the gate. A LinkError of
        `send` holds instead, as a missing action does: a robot whose link is cut comes to rest by itself.
        """
        pending = None
        try:
            with self._lock:
                try:
                    return self._pass(values, valid_until)
                finally:
                    pending = self._pending()
        finally:
            self._wake.set()
            self._report(pending)

    def lapse(self, reason: str, *, latch: bool = False) -> None:
        """Come to rest as declared, now: whoever calls knows already that no fresh action will come.

        Before the first action nothing moves and nothing lapses, unless with `latch`: then only `reset` ends it.
        """
        pending = None
        try:
            with self._lock:
                running = self._watchdog.state == "running"
                if self._closed or (self._watchdog.state == "waiting" and not latch):
                    return
                self._watchdog.lapse(reason, latch=latch)
                if running:
                    self._rest(self._clock())
                pending = self._pending()
        finally:
            self._wake.set()
            self._report(pending)

    def come_to_rest(self, reason: str, within_s: float) -> None:
        """The way to rest as declared, waited for `within_s` at most. Nothing passes afterwards, until a reset."""
        self.lapse(reason, latch=True)
        until = time.monotonic() + within_s
        while not self.resting and time.monotonic() < until:
            time.sleep(LOOK_S)

    @property
    def resting(self) -> bool:
        """Whether a lapse lasts and nothing more is to be sent on the way to rest."""
        return self._watchdog.state != "running" and self._next_hold is None

    def tick(self) -> float | None:
        """What is due now: a lapse, or one more action on the way to rest. Seconds until the next; None: nothing is."""
        if not self._lock.acquire(timeout=self._robot.lapse_s):
            if not self._stuck:
                self._stuck = True
                self._report(
                    f"send has not returned for {1e3 * self._robot.lapse_s:.0f} ms: the robot takes no command"
                )
            return self._robot.lapse_s
        try:
            self._stuck = False
            now = self._clock()
            if self._watchdog.check(now):
                self._rest(now)
            elif self._next_hold is not None and now >= self._next_hold:
                self._hold(now)
            due = self._watchdog.left(now) if self._next_hold is None else max(0.0, self._next_hold - now)
            pending = self._pending()
        finally:
            self._lock.release()
        self._report(pending)
        return due

    def close(self) -> None:
        """Stop the robot, if it was ever sent anything, then the watch. Nothing passes afterwards."""
        if self._lock.acquire(timeout=self._robot.lapse_s):
            try:
                if not self._closed and self._used:
                    self._deliver(self.limiter.stop().values, "stop")
                self._closed, self._next_hold = True, None
                self._watchdog.lapse("the gate is closed", latch=True)
            finally:
                self._lock.release()
        self._closed = True
        self._wake.set()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pass(self, values: ArrayLike, valid_until: float | None) -> Limited | None:
        self.limiter.convert(values)  # what is no action of this robot feeds no watchdog
        now = self._clock()
        running = self._watchdog.state == "running"
        if not self._watchdog.feed(now, valid_until):
            self._refused += 1
            if running and not self._closed:
                self._rest(now)
            return None
        try:
            limited = self.limiter.limit(values)
        except NotFiniteError as error:
            self._watchdog.lapse(str(error), latch=True)
            self._next_hold = None
            self._deliver(error.stop, "stop")
            raise
        self._next_hold = None
        if (failure := self._deliver(limited.values, "action")) is not None:
            if isinstance(failure, LinkError):
                raise failure
            raise ResourceError(
                f"the robot did not take the action: {failure!r}; mend the link, then reset"
            ) from failure
        return limited

    def _rest(self, now: float) -> None:
        """What the robot declared for a stale or missing action."""
        if self._robot.watchdog.on_stale == "hold":
            self._hold(now)
        else:
            self._next_hold = None
            self._deliver(self.limiter.stop().values, "stop")

    def _hold(self, now: float) -> None:
        """One action on the way to rest, and the time of the next until it rests."""
        held = self.limiter.hold()
        done = self.limiter.resting
        self._next_hold = None if done else now + self._robot.period_ms / 1e3
        self._deliver(held.values, "hold")

    def _deliver(self, values: Floats, kind: Kind) -> Exception | None:
        """Send; where that fails nothing passes until a reset, because nobody knows what the robot does now.

        Behind a link that says what failed the robot rests by itself: it is as if it had been stopped.
        """
        self.sending, self._used = kind, True
        try:
            self._send(values)
        except LinkError as error:
            found: Exception = error
            if kind == "action" and error.taken is False:
                self.limiter.take_back()
            self.limiter.stop()
            self._watchdog.lapse(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a motor's driver raises
            self._watchdog.lapse(f"send failed: {error!r}", latch=True)
            found = error
        else:
            return None
        self._next_hold = None
        return found

    def _pending(self) -> str | None:
        """The reason of a lapse that nobody has reported yet."""
        if self._watchdog.lapses == self._reported:
            return None
        self._reported = self._watchdog.lapses
        return self._watchdog.reason

    def _report(self, reason: str | None) -> None:
        if reason is not None and self._on_lapse is not None:
            self._on_lapse(reason)

    def _run(self) -> None:
        while not self._closed:
            try:
                due = self.tick()
            except BaseException:  # noqa: BLE001 - the caller's `on_lapse`, a SystemExit too: the watch goes on
                due = self._robot.period_ms / 1e3
            self._wake.wait(due)
            self._wake.clear()
