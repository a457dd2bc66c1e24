"""OpenVLA's `crop_and_resize` at test time: the middle 0.9 of the area, stretched to the policy's size.

Bit for bit `tf.image.convert_image_dtype`, `tf.image.crop_and_resize` (bilinear, corners aligned), and back.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

AREA: Final = np.float32(0.9)
TO_UNIT: Final = np.float32(1 / 255)
TO_LEVEL: Final = np.float32(255.5)  # 255 and the half that truncation needs to round


class Samples(NamedTuple):
    """Between which two old rows each new one lies, and how far from the first."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    share: NDArray[np.float32]


def centre_crop(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3) uint8."""
    height, width = image.shape[:2]
    down, right = samples(height, size), samples(width, size)
    unit = image.astype(np.float32) * TO_UNIT
    top = _across(unit[down.before], right)
    bottom = _across(unit[down.after], right)
    values = top + (bottom - top) * down.share[:, None, None]
    levels: NDArray[np.uint8] = (np.clip(values, 0, 1) * TO_LEVEL).astype(np.uint8)
    return levels


def samples(old: int, new: int) -> Samples:
    """Where `new` rows lie in the middle of `old`."""
    length = np.sqrt(AREA)
    start = (np.float32(1) - length) / np.float32(2)
    last = np.float32(old - 1)
    step = (start + length - start) * last / np.float32(max(new - 1, 1))
    place = start * last + np.arange(new).astype(np.float32) * step
    before = np.floor(place)
    return Samples(before.astype(np.int64), np.ceil(place).astype(np.int64), place - before)


def _across(rows: NDArray[np.float32], right: Samples) -> NDArray[np.float32]:
    left = rows[:, right.before]
    return left + (rows[:, right.after] - left) * right.share[None, :, None]
