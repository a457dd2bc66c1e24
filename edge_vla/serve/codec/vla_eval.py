"""The form of `vla-eval` 0.8: msgpack with text keys. Images come as PNG or JPEG, other arrays as bytes.

`{"__ndarray__": True, "data": bytes, "dtype": "<f4", "shape": [7]}`,
`{"__image__": True, "format": "png" | "jpeg" | "raw", "data": bytes, "shape": [256, 256, 3]}`, `raw` with a `dtype`.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.codec.image import compressed
from edge_vla.serve.codec.ndarray import DTYPES, array, layout
from edge_vla.serve.codec.packed import Raw, text_keys, unpack
from edge_vla.serve.codec.values import Value, malformed, too_large
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError

ARRAY: Final = "__ndarray__"
IMAGE: Final = "__image__"


def decode(body: bytes, limits: Limits) -> Value:
    pictures = 0

    def value(found: Raw) -> Value:
        nonlocal pictures
        if IMAGE in found:
            pictures += 1
            if pictures > limits.images:
                raise too_large(f"over {limits.images} images", f"at most {limits.images}")
            return _image(found, limits)
        if ARRAY in found:
            _check_fields(found, {ARRAY, "data", "dtype", "shape"})
            return array(found["data"], layout(found["dtype"], found["shape"], limits))
        return text_keys(found)

    return unpack(body, limits, value)


def encode(value: object) -> bytes:
    """The bytes `vla_eval.protocol.pack_message` makes of it, of a message without images."""
    packed: bytes = msgpack.packb(value, default=_default, use_bin_type=True)
    return packed


def _image(found: Raw, limits: Limits) -> NDArray[Any]:
    if found.get("format") == "raw":
        _check_fields(found, {IMAGE, "format", "data", "dtype", "shape"})
        return array(found["data"], layout(found["dtype"], found["shape"], limits))
    _check_fields(found, {IMAGE, "format", "data", "shape"})
    form = layout("|u1", found["shape"], limits)
    image = compressed(found["data"], found["format"], limits)
    if image.shape != form.shape:
        raise RefusedError(Code.IMAGE_SHAPE, f"image: got a picture {image.shape}, expected {form.shape} as it says")
    return image


def _check_fields(found: Raw, expected: set[str]) -> None:
    if found.keys() != expected:
        raise malformed("an array or image with other fields", ", ".join(sorted(expected)))


def _default(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        return {ARRAY: True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"no wire form for {type(value).__name__}")
