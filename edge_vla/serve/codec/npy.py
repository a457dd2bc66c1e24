"""An array from the bytes of a `.npy` file. The header is matched, never evaluated; nothing is unpickled."""

from __future__ import annotations

import io
import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.codec.ndarray import array, layout
from edge_vla.serve.codec.values import kind, malformed
from edge_vla.serve.limits import Limits

MAGIC: Final = b"\x93NUMPY"
LENGTH_BYTES: Final = {1: 2, 2: 4}  # of the header's length, by version
HEADER: Final = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,10}, ){0,16}\d{0,10},?)\), \} *\n"
)
LONGEST_HEADER: Final = 1 << 10


def decode(data: object, limits: Limits) -> NDArray[Any]:
    """Versions 1 and 2, as `numpy.save` writes them. An array in Fortran order comes as a transposed view."""
    if not isinstance(data, bytes):
        raise malformed(f"{kind(data)} as a .npy file", "bytes")
    major = data[len(MAGIC)] if len(data) > len(MAGIC) + 2 else 0
    if not data.startswith(MAGIC) or major not in LENGTH_BYTES or data[len(MAGIC) + 1]:
        raise malformed("bytes that are no .npy file", ".npy version 1.0 or 2.0")
    begin = len(MAGIC) + 2 + LENGTH_BYTES[major]
    length = int.from_bytes(data[len(MAGIC) + 2 : begin], "little")
    header = HEADER.fullmatch(data[begin : begin + length]) if length <= LONGEST_HEADER else None
    if header is None:
        raise malformed("a .npy header that numpy.save does not write", "descr, fortran_order and shape")
    shape = [int(length) for length in header[3].split(b",") if length.strip()]
    form = layout(header[1].decode("latin-1"), shape[::-1] if header[2] == b"True" else shape, limits)
    found = array(memoryview(data)[begin + length :], form)
    return found.T if header[2] == b"True" else found


def encode(values: NDArray[Any]) -> bytes:
    """What `numpy.save` writes."""
    output = io.BytesIO()
    np.save(output, values, allow_pickle=False)
    return output.getvalue()
