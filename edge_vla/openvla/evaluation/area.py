"""`cv2.resize(interpolation=cv2.INTER_AREA)` of 8-bit images: bit for bit OpenCV's.

OpenCV has three ways: whole-number sums where both scales are whole numbers, float32 sums of fractional cells, and,
where a side grows, its own linear interpolation in fixed point.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.openvla.evaluation.resampling import Taps, along_columns, along_rows, packed, rounded

SLIVER: Final = 1e-3  # a smaller share of a pixel is left out
ONE: Final = 2048  # a weight of 1 in fixed point


def area_resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3) uint8."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if min(height, width) < size:
        return _grown(image, size)
    if height % size == 0 and width % size == 0:
        return _whole(image, size)
    values = along_columns(image.astype(np.float32), taps(width, size))
    return rounded(along_rows(values, taps(height, size)))


@lru_cache
def taps(old: int, new: int) -> Taps:
    """How much of each old row a new one covers."""
    scale = 1 / (new / old)
    spans = []
    for row in range(new):
        start = row * scale
        end, cell = start + scale, min(scale, old - start)
        last = min(math.floor(end), old - 1)
        first = min(math.ceil(start), last)
        weights = [1 / cell] * (last - first)
        if end - last > SLIVER:
            weights.append(min(end - last, 1.0, cell) / cell)
        if first - start > SLIVER:
            weights.insert(0, (first - start) / cell)
            first -= 1
        spans.append((first, np.array(weights, np.float32)))
    return packed(spans)


def _whole(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Means of blocks; of four pixels a half is rounded up, of other numbers to even."""
    down, right = image.shape[0] // size, image.shape[1] // size
    sums = image.reshape(size, down, size, right, -1).sum(axis=(1, 3), dtype=np.int32)
    if down == right == 2:
        means: NDArray[np.uint8] = ((sums + 2) >> 2).astype(np.uint8)
        return means
    return rounded(sums.astype(np.float32) * np.float32(1 / (down * right)))


def _grown(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Linear interpolation with weights of 11 bits, columns before rows, each product cut as OpenCV cuts it."""
    right, right_share = _places(image.shape[1], size)
    down, down_share = _places(image.shape[0], size)
    values = image.astype(np.int32)
    after = np.minimum(right + 1, image.shape[1] - 1)
    columns = values[:, right] * (ONE - right_share)[:, None] + values[:, after] * right_share[:, None]
    top, bottom = columns[down] >> 4, columns[np.minimum(down + 1, image.shape[0] - 1)] >> 4
    share = down_share[:, None, None]
    levels: NDArray[np.uint8] = ((((ONE - share) * top >> 16) + (share * bottom >> 16) + 2) >> 2).astype(np.uint8)
    return levels


def _places(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The old row before each new one, and the weight of the row after it, in 1 / ONE."""
    inverse = new / old
    rows = np.arange(new)
    before = np.floor(rows * (1 / inverse)).astype(np.int64)
    share = ((rows + 1) - (before + 1) * inverse).astype(np.float32)
    share = np.where(share <= 0, np.float32(0), share - np.floor(share))
    share[before >= old - 1] = 0
    return np.minimum(before, old - 1), np.rint(share * np.float32(ONE)).astype(np.int32)
