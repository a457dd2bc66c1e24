"""Weights as the C files read them: lines of 64 outputs by 4 inputs. In C: `lanes.h`, `product.h` and `whole.h`."""

from __future__ import annotations

import ctypes
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import EIGHT, NARROW, PackedWeight, Scheme, unpack_nibbles
from edge_vla.runtime.padding import padded

BLOCK: Final = 64  # outputs of a line
STEP: Final = 4  # inputs of a line
PARTS: Final = 4  # of 16 outputs
PIECE: Final = 128  # inputs between two roundings of a sum to memory
MOST_INPUTS: Final = 2**16  # of a product in whole numbers
SPAN: Final = 32  # inputs between two of the sums over a rounded row that are kept
BITS: Final = {Scheme.BF16: 16, Scheme.INT8: 8, Scheme.W8A8: 8, Scheme.INT4: 4}
NEVER, IN_PREFILL, ALWAYS = range(3)  # when a product rounds its inputs to 8 bits, by rows


class Matrix(ctypes.Structure):
    """`Matrix` of product.h. Keeps the tensors that it points into."""

    _fields_ = (
        ("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("outer", ctypes.c_int64), ("inner", ctypes.c_int64), ("group", ctypes.c_int64), ("bits", ctypes.c_int64),
        ("rounds", ctypes.c_int64),
    )  # fmt: skip
    kept: tuple[Tensor | None, ...]


class Rounded(ctypes.Structure):
    """`Rounded` of whole.h, and the tensors that it points into: room for rows of so many inputs."""

    _fields_ = (
        ("codes", ctypes.c_void_p), ("before", ctypes.c_void_p), ("steps", ctypes.c_void_p),
        ("pitch", ctypes.c_int64), ("before_pitch", ctypes.c_int64),
    )  # fmt: skip
    kept: tuple[Tensor, ...]

    @staticmethod
    def room(rows: int, inner: int) -> Rounded:
        pitch, spans = padded(inner, BLOCK), -(-inner // SPAN) + 1
        codes = torch.zeros(rows, pitch, dtype=torch.int8)
        before, steps = torch.zeros(rows, spans, dtype=torch.int32), torch.zeros(rows, dtype=torch.float32)
        made = Rounded(codes.data_ptr(), before.data_ptr(), steps.data_ptr(), pitch, spans)
        made.kept = (codes, before, steps)
        return made


class Format(Protocol):
    """What is known of a weight before it is read."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group(self) -> int | None: ...


def fits(weight: Format) -> bool:
    """Whether the lines can hold it: a format they know (narrow ones come as int4), groups that pieces do not cut."""
    group = weight.group
    whole = group is None or (group % STEP == 0 and (group < PIECE or group % PIECE == 0))
    known = weight.scheme in (*BITS, *NARROW)
    return whole and known and (weight.scheme is not Scheme.W8A8 or fits_rounded(weight))


def fits_rounded(weight: Format) -> bool:
    """Whether it can be multiplied in whole numbers: codes, groups that spans do not cut, sums that 32 bits hold."""
    return weight.scheme is not Scheme.BF16 and (weight.group or SPAN) % SPAN == 0 and weight.shape[1] <= MOST_INPUTS


def matrix(packed: PackedWeight, bias: Tensor | None = None, *, rounds: int = NEVER) -> Matrix:
    """A weight that `fits`, its outputs padded to 64s and its inputs to fours with zeros.

    `rounds`: when its inputs are; W8A8's always.
    """
    outer, inner = (padded(packed.shape[0], BLOCK), padded(packed.shape[1], STEP))
    codes = lines(packed)
    scales = None
    if packed.scales is not None:
        columns = packed.scales.view(packed.shape[0], -1)
        rows = F.pad(columns.float(), (0, 0, 0, outer - packed.shape[0])).bfloat16()
        scales = rows.view(outer // BLOCK, BLOCK, -1).transpose(1, 2).contiguous()
    wide_bias = None if bias is None else vector(bias, outer)
    made = Matrix(
        codes.data_ptr(), address(scales), address(wide_bias), outer, inner, packed.group or inner,
        BITS[packed.scheme], ALWAYS if packed.scheme is Scheme.W8A8 else rounds,
    )  # fmt: skip
    made.kept = (codes, scales, wide_bias)
    return made


def lines(packed: PackedWeight) -> Tensor:
    """(outer / 64, inner / 4, bytes of a line) uint8."""
    outer, inner = padded(packed.shape[0], BLOCK), padded(packed.shape[1], STEP)
    if packed.scheme is Scheme.INT4:
        codes = unpack_nibbles(packed.codes)
    elif packed.scheme in EIGHT:
        codes = packed.codes
    else:
        codes = packed.codes.to(torch.bfloat16).view(torch.int16)
    codes = F.pad(codes, (0, inner - packed.shape[1], 0, outer - packed.shape[0]))
    places = codes.view(outer // BLOCK, PARTS, BLOCK // PARTS, inner // STEP, 2, 2).permute(0, 3, 1, 4, 2, 5)
    if packed.scheme is Scheme.INT4:
        return (places[:, :, :, 0] | (places[:, :, :, 1] << 4)).reshape(outer // BLOCK, inner // STEP, -1)
    return places.contiguous().view(torch.uint8).view(outer // BLOCK, inner // STEP, -1)


def vector(values: Tensor, length: int) -> Tensor:
    """A vector in bfloat16, a copy, padded to `length` with zeros."""
    return F.pad(values.detach().to(torch.bfloat16, copy=True), (0, length - values.numel()))


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
