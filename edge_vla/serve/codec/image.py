"""A camera's image: (H, W, 3) uint8 RGB, or the reason why it is none. PNG and JPEG are measured before decoding."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.serve.codec.values import kind, malformed
from edge_vla.serve.limits import Limits, check_sides
from edge_vla.serve.messages import Code, RefusedError

Order = Literal["HWC", "CHW"]
COLOURS = 3
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def rgb(value: object, name: str, limits: Limits, order: Order = "HWC") -> NDArray[np.uint8]:
    """`value` as (H, W, 3) uint8, C-contiguous. `order` is what the protocol sends, `name` the field's."""
    if not isinstance(value, np.ndarray):
        raise _wrong(name, kind(value), order)
    if value.dtype != np.uint8:
        raise _wrong(name, f"{value.dtype} {value.shape}", order)
    if value.ndim != COLOURS or value.shape[0 if order == "CHW" else -1] != COLOURS:
        raise _wrong(name, _named(value), order)
    image = value if order == "HWC" else value.transpose(1, 2, 0)
    check_sides(image.shape, limits)
    return np.ascontiguousarray(image)


def compressed(data: object, form: object, limits: Limits) -> NDArray[np.uint8]:
    """A `png` or `jpeg` picture as (H, W, 3) uint8; its header is checked before its pixels are decoded."""
    if not isinstance(data, bytes):
        raise malformed(f"{kind(data)} as a picture", "bytes")
    if form not in ("png", "jpeg"):
        raise malformed(f"a picture of format {form!r:.16}", "'raw', 'png' or 'jpeg'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own caps are below it
            picture = Image.open(io.BytesIO(data), formats=(str(form).upper(),))
            check_sides((picture.height, picture.width, COLOURS), limits)
            if picture.mode != "RGB":
                raise RefusedError(Code.IMAGE_SHAPE, f"image: got a {picture.mode} picture, expected RGB")
            return np.asarray(picture)
    except (*UNREADABLE, Image.DecompressionBombError):
        raise malformed(f"bytes that are no readable {form}", f"a {form} picture") from None


def _named(image: NDArray[Any]) -> str:
    """What an array of the wrong layout seems to be."""
    shape = image.shape
    if len(shape) == COLOURS and shape[0] == COLOURS:
        return f"CHW {shape}"
    if len(shape) == COLOURS and shape[-1] == COLOURS:
        return f"HWC {shape}"
    if len(shape) == COLOURS and shape[-1] in (1, 4):
        return f"{'greyscale' if shape[-1] == 1 else 'RGBA'} {shape}"
    if len(shape) == COLOURS - 1:
        return f"greyscale {shape}"
    return f"a batch {shape}" if len(shape) > COLOURS else f"{shape}"


def _wrong(name: str, got: str, order: Order) -> RefusedError:
    expected = f"{order} {'(H, W, 3)' if order == 'HWC' else '(3, H, W)'} uint8"
    return RefusedError(Code.IMAGE_SHAPE, f"{name}: got {got}, expected {expected}")
