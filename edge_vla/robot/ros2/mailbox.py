"""One slot between the executor, which brings frames, and the thread that runs the policy: the newest wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_vla.robot.ros2.messages import Origin

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Frame:
    """An image that came at `received` (monotonic seconds). `read` decodes it: (H, W, 3) uint8 RGB or FrameError.

    `epoch` counts the clock's jumps: a frame from before one has a stamp that no longer means anything.
    """

    origin: Origin
    received: float
    read: Callable[[], NDArray[np.uint8]]
    epoch: int = 0


class Mailbox(Generic[T]):
    """`put` from any thread never waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._content: T | None = None
        self._closed = False
        self.superseded = 0

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, content: T) -> None:
        with self._changed:
            self.superseded += self._content is not None
            self._content = content
            self._changed.notify()

    def take(self, timeout_s: float) -> T | None:
        """The newest, once; None after `timeout_s`, or when closed."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._content is None and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            content, self._content = self._content, None
            return None if self._closed else content

    def clear(self) -> None:
        with self._changed:
            self._content = None

    def close(self) -> None:
        """Nobody takes anything any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
