"""The engine's thread: one function at a time, off the event loop, its result brought back onto it.

Knows threads and loops, and nothing of policies. What the engine was asked runs to its end, whoever stops waiting.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a function gave, or what it raised, and the seconds that it took."""

    value: T | None
    error: BaseException | None
    seconds: float


class EngineThread:
    """`run` hands a function over and returns; `done` is called with its outcome on the loop that started this."""

    def __init__(self, name: str = "engine") -> None:
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self.busy_since: float | None = None

    def run(self, function: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        self.busy_since = time.monotonic()
        self._work.put(lambda: self._call(function, done))

    def say(self, function: Callable[[], None]) -> None:
        """Call `function` on the loop, from the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """After what runs. Does not wait: a device that hangs must not keep the process."""
        self._work.put(None)

    def _main(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _call(self, function: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        began = time.perf_counter()
        try:
            outcome = Outcome(function(), None, time.perf_counter() - began)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, somebody waits for it
            outcome = Outcome[T](None, error, time.perf_counter() - began)
        self.say(lambda: self._finished(outcome, done))

    def _finished(self, outcome: Outcome[T], done: Callable[[Outcome[T]], None]) -> None:
        self.busy_since = None
        done(outcome)


def settle(future: asyncio.Future[T], outcome: Outcome[T]) -> None:
    """The outcome, for whoever awaits `future`; nothing where nobody does any more."""
    if future.done():
        return
    if outcome.error is not None:
        future.set_exception(outcome.error)
    elif outcome.value is not None:
        future.set_result(outcome.value)
