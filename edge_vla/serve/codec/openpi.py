"""The form of `openpi-client`: msgpack, arrays as maps with bytes as keys, numpy scalars as maps too.

`{b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [224, 224, 3]}`,
`{b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f8"}`.
"""

from __future__ import annotations

from typing import Final

import msgpack
import numpy as np

from edge_vla.serve.codec.ndarray import DTYPES, array, layout
from edge_vla.serve.codec.packed import Raw, text_keys, unpack
from edge_vla.serve.codec.values import Value, kind, malformed
from edge_vla.serve.limits import Limits

ARRAY: Final = b"__ndarray__"
SCALAR: Final = b"__npgeneric__"


def decode(body: bytes, limits: Limits) -> Value:
    return unpack(body, limits, lambda found: _value(found, limits))


def encode(value: object) -> bytes:
    """The bytes `openpi_client.msgpack_numpy.packb` makes of it."""
    packed: bytes = msgpack.packb(value, default=_default)
    return packed


def _value(found: Raw, limits: Limits) -> Value:
    if ARRAY in found:
        if found.keys() != {ARRAY, b"data", b"dtype", b"shape"}:
            raise malformed("an array with other fields", "__ndarray__, data, dtype and shape")
        return array(found[b"data"], layout(found[b"dtype"], found[b"shape"], limits))
    if SCALAR in found:
        if found.keys() != {SCALAR, b"data", b"dtype"}:
            raise malformed("a scalar with other fields", "__npgeneric__, data and dtype")
        return _scalar(found[b"data"], found[b"dtype"], limits)
    return text_keys(found)


def _scalar(data: Value, dtype: Value, limits: Limits) -> Value:
    """The number itself; its dtype only has to fit it."""
    form = layout(dtype, [], limits).dtype
    if form.kind == "b":
        fits = isinstance(data, bool)
    elif form.kind == "f":
        fits = type(data) in (int, float)
    else:
        fits = type(data) is int and np.iinfo(form).min <= data <= np.iinfo(form).max
    if not fits:
        raise malformed(f"{kind(data)} for a scalar {form}", "a number of that dtype")
    return data


def _default(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.str not in DTYPES:
        raise TypeError(f"no wire form for {value.dtype}")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"no wire form for {type(value).__name__}")
