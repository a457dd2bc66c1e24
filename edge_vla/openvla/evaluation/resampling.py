"""Rows that are weighted sums of rows, in float32 and in the order that TensorFlow and OpenCV add them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Taps:
    """New row i is the sum over k of `weights[i, k]` times old row `first[i] + k`; unused weights are zeros."""

    first: NDArray[np.int64]  # (rows,)
    weights: NDArray[np.float32]  # (rows, taps)


def packed(spans: list[tuple[int, NDArray[np.float32]]]) -> Taps:
    """Taps of rows given one by one as their first old row and its weights."""
    weights = np.zeros((len(spans), max(len(row) for _, row in spans)), np.float32)
    for i, (_, row) in enumerate(spans):
        weights[i, : len(row)] = row
    return Taps(np.array([first for first, _ in spans], np.int64), weights)


def along_rows(image: NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """(H, W, C) float32 -> (rows, W, C)."""
    total = np.zeros((len(taps.first), *image.shape[1:]), np.float32)
    for tap in range(taps.weights.shape[1]):
        rows = image[np.minimum(taps.first + tap, len(image) - 1)]
        total += rows * taps.weights[:, tap, None, None]
    return total


def along_columns(image: NDArray[np.float32], taps: Taps) -> NDArray[np.float32]:
    """(H, W, C) float32 -> (H, columns, C)."""
    return along_rows(image.swapaxes(0, 1), taps).swapaxes(0, 1)


def rounded(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest of 256 levels, of two the even one."""
    levels: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return levels
