"""An array from bytes, a dtype and a shape that a stranger sent. Knows no wire format; evaluates and unpickles nothing.

Booleans, integers and floats of fixed sizes, in either byte order. Objects, structures, complex numbers, text and dates
are refused by not being in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.codec.values import DIMS, LENGTH, kind, malformed, too_large
from edge_vla.serve.limits import Limits

SIZES: Final = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
_TYPES: Final = [
    np.dtype(f"{order}{letter}{size}")
    for letter, sizes in SIZES.items()
    for size in sizes
    for order in ("|" if size == 1 else "<>")
]
DTYPES: Final = {
    **{dtype.name: dtype for dtype in _TYPES if dtype.isnative},
    **{dtype.str: dtype for dtype in _TYPES},
}


@dataclass(frozen=True)
class Layout:
    """How bytes are to be read. `nbytes` is what the shape needs, known before there is an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int


def layout(dtype: object, shape: object, limits: Limits) -> Layout:
    """Raises RefusedError for a dtype outside the table, a shape that is none, and what is over the limits."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        named = repr(dtype[:16]) if isinstance(dtype, str) else kind(dtype)
        raise malformed(f"dtype {named}", "a fixed-size bool, int, uint or float such as '|u1' or '<f4'")
    if not isinstance(shape, (list, tuple)) or not all(type(length) is int and length >= 0 for length in shape):
        raise malformed("a shape that is no list of lengths", "a list of whole numbers, 0 or more")
    if len(shape) > DIMS:
        raise too_large(f"an array of {len(shape)} dimensions", f"at most {DIMS}")
    if any(length > LENGTH for length in shape):
        raise too_large(f"a dimension over {LENGTH}", f"at most {LENGTH}")
    nbytes = DTYPES[dtype].itemsize
    for length in shape:
        nbytes *= length
    if nbytes > limits.body:
        raise too_large(f"an array of {nbytes} bytes", f"at most {limits.body}")
    return Layout(DTYPES[dtype], tuple(shape), nbytes)


def array(data: object, form: Layout) -> NDArray[Any]:
    """A read-only view of `data` in native byte order (a copy where the sender's was another). C order."""
    if not isinstance(data, (bytes, memoryview)):
        raise malformed(f"{kind(data)} as an array's data", "bytes")
    if len(data) != form.nbytes:
        raise malformed(f"{len(data)} bytes for shape {form.shape} {form.dtype}", f"{form.nbytes}")
    found: NDArray[Any] = np.ndarray(form.shape, form.dtype, buffer=data)
    if form.dtype.kind == "b" and found.size and found.view(np.uint8).max() > 1:
        raise malformed("a truth value that is neither 0 nor 1", "0 or 1")
    return found if form.dtype.isnative else found.astype(form.dtype.newbyteorder("="))
