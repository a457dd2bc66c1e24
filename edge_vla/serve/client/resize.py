"""The policy's own resize, in numpy alone: bit for bit what Pillow's bicubic makes of an image.

So a robot may send (224, 224, 3) instead of what its camera gives, and the policy sees the same pixels. Pillow computes
in whole numbers: weights of 22 bits, along the width first, rounded to 8 bits between the two passes. (Pillow 13 begins
with the height of some upright images; the policy makes it begin with the width.)
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

BITS: Final = 22  # of a weight
SUPPORT: Final = 2.0  # pixels that a bicubic looks to each way, before it is stretched
SHARPNESS: Final = -0.5


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3), each side by its own factor."""
    height, width, _ = image.shape
    if width != size:
        image = _rows(image.swapaxes(0, 1), size).swapaxes(0, 1)
    if height != size:
        image = _rows(image, size)
    return np.ascontiguousarray(image)


def _rows(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(n, m, 3) -> (size, m, 3): each new row a weighted sum of old ones."""
    first, weights = _weights(image.shape[0], size)
    last = image.shape[0] - 1
    total = np.full((size, *image.shape[1:]), 1 << (BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = image[np.minimum(first + tap, last)].astype(np.int32)
        total += rows * weights[:, tap, None, None]
    rounded: NDArray[np.uint8] = np.clip(total >> BITS, 0, 255).astype(np.uint8)
    return rounded


@lru_cache(16)
def _weights(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """The first old row of each new one, (new,), and the weights from there on, (new, taps)."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    first, rows = [], []
    for i in range(new):
        centre = (i + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(old, int(centre + support + 0.5))
        raw = [_bicubic((j + low - centre + 0.5) * (1.0 / stretch)) for j in range(high - low)]
        total = 0.0
        for weight in raw:
            total += weight
        first.append(low)
        rows.append([int(weight / total * (1 << BITS) + math.copysign(0.5, weight)) for weight in raw])
    taps = max(map(len, rows))
    return np.array(first, np.intp), np.array([row + [0] * (taps - len(row)) for row in rows], np.int32)


def _bicubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return ((SHARPNESS + 2.0) * x - (SHARPNESS + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * SHARPNESS
    return 0.0
