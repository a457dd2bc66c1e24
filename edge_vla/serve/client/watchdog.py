"""A thread that calls `on_hold` when no fresh action came for too long. No safety function: a robot needs its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Watches from the first `feed` on. `on_hold(seconds)` is called once a lapse, in the watchdog's own thread."""

    def __init__(self, seconds: float, on_hold: Callable[[float], None]) -> None:
        self.seconds, self._on_hold = seconds, on_hold
        self._changed = threading.Condition()
        self._fed: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def feed(self) -> None:
        """A fresh action has come."""
        with self._changed:
            self._fed = time.monotonic()
            self._changed.notify()

    def close(self) -> None:
        """Stop watching. Waits for a callback that runs, a second at most: it may be waiting for us."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _watch(self) -> None:
        while (silent := self._lapse()) is not None:
            self._on_hold(silent)

    def _lapse(self) -> float | None:
        """Wait for the next lapse; its length so far in seconds, or None when closed."""
        with self._changed:
            while not self._closed:
                left = None if self._fed is None else self._fed + self.seconds - time.monotonic()
                if self._fed is not None and left is not None and left <= 0:
                    silent, self._fed = time.monotonic() - self._fed, None  # watches again after the next action
                    return silent
                self._changed.wait(left)
        return None
