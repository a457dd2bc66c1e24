"""Rows and widths rounded up to multiples that kernels need."""

from __future__ import annotations

from typing import Final

PAD_TO: Final = 16  # rows of a prompt


def padded(number: int, to: int = PAD_TO) -> int:
    """`number` rounded up to a multiple of `to`."""
    return -(-number // to) * to
