"""Numbers of rows and widths rounded up to what kernels take whole."""

from __future__ import annotations

from typing import Final

PAD_TO: Final = 16  # rows of a prompt


def padded(number: int, to: int = PAD_TO) -> int:
    """The least multiple of `to` that is not below `number`."""
    return -(-number // to) * to
