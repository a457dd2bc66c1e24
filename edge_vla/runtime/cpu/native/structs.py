"""The structures that the C files read: `structs.h` declares the same ones in the same order.

Fields are documented there. A structure does not own the tensors that it points into; `kept` does.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Final

from torch import Tensor


class Int8Inputs(IntEnum):
    """When a gemm takes its inputs in 8 bits, one scale a row. Where it takes integers, they have 16 bits else."""

    NEVER, IN_PREFILL, ALWAYS = range(3)


def _pointers(*names: str) -> tuple[tuple[str, type[ctypes.c_void_p]], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def _integers(*names: str) -> tuple[tuple[str, type[ctypes.c_int64]], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


class Matrix(ctypes.Structure):
    _fields_ = (*_pointers("codes", "scales", "bias"), *_integers("n", "k", "group", "bits", "int8_inputs"))
    kept: tuple[Tensor | None, ...]


class IntRows(ctypes.Structure):
    _fields_ = (*_pointers("codes", "prefix_sum", "scales"), *_integers("pitch", "prefix_pitch", "planes"))
    kept: tuple[Tensor, ...]


class Linear(ctypes.Structure):
    _fields_ = (("part", Matrix * 3), *_integers("parts"))


class DecoderLayer(ctypes.Structure):
    _fields_ = (
        *((name, Linear) for name in ("qkv", "o_proj", "gate_up", "down_proj")),
        *_pointers("input_norm", "attention_norm"),
    )


class Decoder(ctypes.Structure):
    _fields_ = (
        *_integers("layers", "width", "mlp_width", "heads", "kv_heads", "head_width"),
        ("norm_eps", ctypes.c_double),
        *_pointers("layer", "norm"),
    )


class DecoderWorkspace(ctypes.Structure):
    _fields_ = (
        *_pointers("x", "normed", "qkv", "context", "gate_up", "hidden"),
        *_integers("pitch", "qkv_pitch", "gate_up_pitch", "hidden_pitch"),
        *_pointers("scratch"),
        *_integers("scratch_bytes"),
        ("rows8", IntRows),
        ("rows16", IntRows),
    )


class Cache(ctypes.Structure):
    _fields_ = (*_pointers("keys", "values"), *_integers("slots"), *_pointers("cos", "sin"))


class Pass(ctypes.Structure):
    _fields_ = _integers("rows", "start", "wanted", "wanted_end", "prefill")


class ActionHead(ctypes.Structure):
    _fields_ = (("head", Matrix), *_pointers("embedding", "rows", "hidden", "logits"), *_integers("bins"))


class TowerLayer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "proj", "fc1", "fc2")),
        *_pointers("norm1", "norm1_bias", "norm2", "norm2_bias", "layer_scale1", "layer_scale2"),
    )


class Tower(ctypes.Structure):
    _fields_ = (
        *_integers("width", "heads", "prefix", "grid", "patch_size", "layers"),
        ("norm_eps", ctypes.c_double),
        ("patch", Matrix),
        *_pointers("prefix_rows", "positions", "layer"),
    )


class Vision(ctypes.Structure):
    _fields_ = (*_integers("towers", "linears"), *_pointers("tower", "linear"))


class VisionWorkspace(ctypes.Structure):
    _fields_ = (
        *_pointers("x", "normed", "qkv", "context", "hidden", "patches", "features"),
        ("projected", ctypes.c_void_p * 3),
        *_integers("pitch", "qkv_pitch", "hidden_pitch", "patches_pitch", "features_pitch", "slots"),
        *_pointers("scratch"),
        *_integers("scratch_bytes"),
        ("rows16", IntRows),
    )


STRUCTS: Final = (
    Matrix, IntRows, Linear, DecoderLayer, Decoder, DecoderWorkspace, Cache, Pass, ActionHead, TowerLayer, Tower,
    Vision, VisionWorkspace,
)  # fmt: skip
