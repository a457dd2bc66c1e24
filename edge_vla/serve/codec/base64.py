"""base64 as images come in it, decoded three times as fast as the standard library does: two letters a look-up.

Of a long text only the alphabet of RFC 4648 is read, padded at the end. Of a short one the standard library skips other
letters, so that the bytes are too few: the caller counts them.
"""

from __future__ import annotations

import binascii
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
SMALL: Final = 1 << 12  # letters, for which the tables are not worth their cache
FOREIGN: Final = 1 << 24  # marks a pair that holds another letter


def decode(text: bytes | memoryview) -> bytes | memoryview:
    """The bytes of a base64 text. ValueError for a text that is none."""
    if len(text) < SMALL or len(text) % 4:
        return binascii.a2b_base64(text)
    if text[-1] == ord("="):
        return b"".join((_decode(text[:-4]), binascii.a2b_base64(text[-4:])))
    return _decode(text)


def _decode(text: bytes | memoryview) -> memoryview:
    first, second = _tables()
    pairs = np.frombuffer(text, "<u2").reshape(-1, 2)
    groups = first.take(pairs[:, 0])
    groups |= second.take(pairs[:, 1])
    if groups.max() >= FOREIGN:
        raise ValueError("a letter that is not of base64")
    parts = groups.view(np.uint8).reshape(-1, 4)
    found = np.empty((len(parts), 3), np.uint8)
    for column in range(3):
        found[:, column] = parts[:, column]
    found.flags.writeable = False
    return found.reshape(-1).data


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What the first and the second pair of four letters add to their three bytes, in order in a little-endian word."""
    values = np.full(256, FOREIGN, "<u4")
    values[np.frombuffer(ALPHABET, np.uint8)] = np.arange(len(ALPHABET))
    pairs = np.arange(1 << 16)
    high, low = values[pairs & 0xFF], values[pairs >> 8]
    bits, foreign = (high & 63) << 6 | (low & 63), (high | low) & FOREIGN
    return bits >> 4 | (bits & 15) << 12 | foreign, bits & 0xF00 | (bits & 0xFF) << 16 | foreign
