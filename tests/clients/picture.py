"""The picture and the instruction that clients send: those of `scripts/common.py`, which cannot import this."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INSTRUCTION = "pick up the red block"


def picture() -> NDArray[np.uint8]:
    """(20, 24, 3) uint8, the same everywhere."""
    rows, columns, colours = np.ogrid[:20, :24, :3]
    made: NDArray[np.uint8] = ((rows * 11 + columns * 7 + colours * 53) % 256).astype(np.uint8)
    return made
