"""The form of Isaac GR00T's `MsgSerializer`: msgpack with text keys, arrays as `.npy` files.

`{"__ndarray_class__": True, "as_npy": bytes}`, `{"__ModalityConfig_class__": True, "as_json": …}`: JSON text in N1.5,
a map in N1.6 and later. The older pickled form of N1 is no msgpack, and refused as such.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Final, Literal

import msgpack
import numpy as np

from edge_vla.serve.codec import json_numpy, npy
from edge_vla.serve.codec.ndarray import DTYPES
from edge_vla.serve.codec.packed import Raw, text_keys, unpack
from edge_vla.serve.codec.values import Value, malformed
from edge_vla.serve.limits import Limits

ARRAY: Final = "__ndarray_class__"
MODALITY: Final = "__ModalityConfig_class__"
Version = Literal["n1.5", "n1.6"]


@dataclasses.dataclass(frozen=True)
class ModalityConfig:
    """Which time steps of which keys a modality has, relative to now."""

    delta_indices: list[int]
    modality_keys: list[str]


def decode(body: bytes, limits: Limits) -> Value:
    """A modality configuration comes as its plain map, whichever version sent it."""
    return unpack(body, limits, lambda found: _value(found, limits))


def encode(value: object, version: Version = "n1.6") -> bytes:
    """The bytes GR00T's `MsgSerializer.to_bytes` makes of it."""
    packed: bytes = msgpack.packb(value, default=lambda item: _default(item, version))
    return packed


def _value(found: Raw, limits: Limits) -> Value:
    if ARRAY in found:
        if found.keys() != {ARRAY, "as_npy"}:
            raise malformed("an array with other fields", f"{ARRAY} and as_npy")
        return npy.decode(found["as_npy"], limits)
    if MODALITY in found:
        if found.keys() != {MODALITY, "as_json"}:
            raise malformed("a modality with other fields", f"{MODALITY} and as_json")
        inside = found["as_json"]
        inside = json_numpy.decode(inside.encode("utf-8", "replace"), limits) if isinstance(inside, str) else inside
        if not isinstance(inside, dict) or not {"delta_indices", "modality_keys"} <= inside.keys():
            raise malformed("a modality without its fields", "delta_indices and modality_keys")
        return inside
    return text_keys(found)


def _default(value: object, version: Version) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        return {ARRAY: True, "as_npy": npy.encode(value)}
    if isinstance(value, ModalityConfig):
        plain = dataclasses.asdict(value)
        if version == "n1.5":
            return {MODALITY: True, "as_json": json.dumps(plain, separators=(",", ":"))}
        unset = {"sin_cos_embedding_keys": None, "mean_std_embedding_keys": None, "action_configs": None}
        return {MODALITY: True, "as_json": {**plain, **unset}}
    raise TypeError(f"no wire form for {type(value).__name__}")
