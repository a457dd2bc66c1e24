"""What each robot was last answered for, as a small picture for the live page. Bounded, in memory only.

An image is kept as it came, without a copy, and made a JPEG when somebody looks at it: without a page open nothing is
done to it. Knows images, and no wire.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.serve.messages import Code, Observation, Reply

SHOWN: Final = 224  # pixels, the longest side of a picture that is shown
KEPT: Final = 2**28  # bytes of all images that are kept: 256 robots' of 640 x 480
QUALITY: Final = 80


@dataclass(eq=False)
class _Last:
    """A robot's newest answered image, (H, W, 3) uint8, and its JPEG once somebody has looked."""

    number: int
    image: NDArray[np.uint8]
    jpeg: bytes | None = None


class Pictures:
    """A `Watcher` of at most `robots` robots and `most` bytes; the one that was answered longest ago makes place."""

    def __init__(self, robots: int, most: int = KEPT) -> None:
        self._robots, self._most = robots, most
        self._count, self._bytes = 0, 0
        self._last: OrderedDict[str, _Last] = OrderedDict()

    def number(self, robot: str) -> int | None:
        """Which picture there is of a robot, another for each; None for none."""
        last = self._last.get(robot)
        return None if last is None else last.number

    async def jpeg(self, robot: str) -> bytes | None:
        """A robot's newest picture as a JPEG file, encoded on a thread the first time; None where there is none."""
        last = self._last.get(robot)
        if last is None:
            return None
        if last.jpeg is None:
            last.jpeg = await asyncio.to_thread(encode, last.image)
        return last.jpeg

    def answered(self, observation: Observation, reply: Reply) -> None:  # noqa: ARG002
        self.left(observation.robot)
        self._count += 1
        self._last[observation.robot] = _Last(self._count, observation.image)
        self._bytes += observation.image.nbytes
        while len(self._last) > self._robots or self._bytes > self._most:
            self.left(next(iter(self._last)))

    def refused(self, robot: str, code: Code) -> None:
        """No action: the last picture stays, beside the last action."""

    def reset(self, robot: str) -> None:
        """An episode's last picture stays until the next one's first."""

    def left(self, robot: str) -> None:
        last = self._last.pop(robot, None)
        if last is not None:
            self._bytes -= last.image.nbytes


def encode(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as a JPEG file of SHOWN pixels at most."""
    step = max(1, max(image.shape) // (2 * SHOWN))  # of a large one not every row: the rest is smoothed
    small, file = Image.fromarray(np.ascontiguousarray(image[::step, ::step])), io.BytesIO()
    small.thumbnail((SHOWN, SHOWN))
    small.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()
