"""What each robot was last answered for, as a small picture for the live page. Bounded, in memory only.

A picture is kept as it came and made a JPEG when somebody looks at it: without a page open nothing is encoded. Knows
images, and no wire.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.serve.messages import Code, Observation, Reply

SHOWN: Final = 224  # pixels, the longest of a picture that is shown
KEPT: Final = 2**20  # bytes of a robot's image: of a larger one every n-th row and column
QUALITY: Final = 80


@dataclass(eq=False)
class _Last:
    """A robot's newest answered image, (H, W, 3) uint8, until it is encoded: then its JPEG."""

    number: int
    image: NDArray[np.uint8] | None
    jpeg: bytes = b""


class Pictures:
    """A `Watcher` of at most `robots` robots; the one that was answered longest ago makes place."""

    def __init__(self, robots: int) -> None:
        self._most, self._count = robots, 0
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
        image = last.image
        if image is not None:
            last.jpeg, last.image = await asyncio.to_thread(encode, image), None
        return last.jpeg

    def answered(self, observation: Observation, reply: Reply) -> None:  # noqa: ARG002
        self._count += 1
        self._last.pop(observation.robot, None)
        self._last[observation.robot] = _Last(self._count, thinned(observation.image))
        while len(self._last) > self._most:
            self._last.popitem(last=False)

    def refused(self, robot: str, code: Code) -> None:
        """No action: the last picture stays, beside the last action."""

    def reset(self, robot: str) -> None:
        """An episode's last picture stays until the next one's first."""

    def left(self, robot: str) -> None:
        self._last.pop(robot, None)


def thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image itself, or of one over KEPT bytes a copy of every n-th row and column."""
    if image.nbytes <= KEPT:
        return image
    step = math.ceil(math.sqrt(image.nbytes / KEPT))
    return image[::step, ::step].copy()


def encode(image: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as a JPEG file of SHOWN pixels at most."""
    small, file = Image.fromarray(image), io.BytesIO()
    small.thumbnail((SHOWN, SHOWN))
    small.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()
