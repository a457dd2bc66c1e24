"""The newest picture, between the thread that brings pictures and the loop that looks at one now and then.

A picture that nobody looked at is replaced. Compressed ones are decoded when they are looked at, never before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_vla.robot.faces import CameraError, Picture

Pixels = NDArray[np.uint8]


class Newest:
    """`put` and `fail` from the source's thread, `newest` from the loop's: the whole of a `Camera` but its name.

    `decode` makes (H, W, 3) uint8 RGB of the bytes that were put; CameraError `unreadable` for what it cannot read.
    """

    def __init__(self, name: str, decode: Callable[[bytes], Pixels] | None = None) -> None:
        self.name, self._decode = name, decode
        self._changed = threading.Condition()
        self._content: Pixels | bytes | None = None
        self._taken, self._number = 0.0, 0
        self._failure: CameraError | None = None
        self._broken = 0  # the number of the last one that could not be decoded: it is not looked at again

    @property
    def number(self) -> int:
        """Of the newest picture; 0 before the first."""
        return self._number

    def put(self, content: Pixels | bytes, taken: float | None = None) -> None:
        """A picture has come: pixels, which nobody may change any more, or a file's bytes. It ends a failure."""
        with self._changed:
            self._content, self._failure = content, None
            self._taken, self._number = time.monotonic() if taken is None else taken, self._number + 1
            self._changed.notify_all()

    def fail(self, error: CameraError) -> None:
        """The source is gone. What it brought before is not looked at any more; the next `put` ends this."""
        with self._changed:
            self._content, self._failure = None, error
            self._changed.notify_all()

    def newest(self, after: int, until: float) -> Picture:
        """As `Camera.newest`. A failure that was there before is waited out as silence is: it may end."""
        with self._changed:
            while self._content is None or self._number <= max(after, self._broken):
                left = until - time.monotonic()
                if left <= 0:
                    raise self._failure or CameraError("silent", f"{self.name} brought no new picture in time")
                self._changed.wait(left)
            content, taken, number = self._content, self._taken, self._number
        if isinstance(content, bytes):
            if self._decode is None:
                raise TypeError(f"{self.name} brings bytes and nothing decodes them")
            self._broken = number
            content = self._decode(content)
            self._broken = 0
        return Picture(content, taken, number)
