"""Weights in the layouts of the C files: lines of 64 outputs, as `lanes.h` describes them."""

from __future__ import annotations

import ctypes
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.quant import NARROW, PackedWeight, Scheme, unpack_nibbles
from edge_vla.runtime.cpu.native.structs import Int8Inputs, IntRows, Matrix
from edge_vla.runtime.padding import padded

BLOCK: Final = 64  # outputs of a line
STEP: Final = 4  # inputs of a line of pairs
PARTS: Final = 4  # of a line of pairs, 16 outputs each
PIECE: Final = 128  # inputs that are summed in registers
TILE: Final = 6  # most rows at a time
MAX_INT_K: Final = 2**16  # inputs of a gemm of integers: 32 bits hold their sum
MAX_PLANES: Final = 2  # of 8 bits each
SPAN: Final = 32  # inputs between two prefix sums of a row
BITS: Final = {Scheme.BF16: 16, Scheme.INT8: 8, Scheme.W8A8: 8, Scheme.INT4: 4}


def zero_point_of(library: ctypes.CDLL) -> int:
    """What a library wants its 8-bit codes stored plus."""
    return ctypes.c_int32.in_dll(library, "edge_vla_zero_point8").value


class Format(Protocol):
    """What is known of a weight before it is read."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group(self) -> int | None: ...


def fits(weight: Format) -> bool:
    """Whether lines can hold it: a known format (narrow ones come as int4), and groups that no piece cuts."""
    group = weight.group
    uncut = group is None or (group % STEP == 0 and (group < PIECE or group % PIECE == 0))
    known = weight.scheme in (*BITS, *NARROW)
    return uncut and known and (weight.scheme is Scheme.BF16 or fits_int(weight))


def fits_int(weight: Format) -> bool:
    """Whether a gemm of integers can run it: integer codes, groups that no span cuts, sums that 32 bits hold."""
    return weight.scheme is not Scheme.BF16 and (weight.group or SPAN) % SPAN == 0 and weight.shape[1] <= MAX_INT_K


def matrix(
    packed: PackedWeight,
    zero_point: int,
    bias: Tensor | None = None,
    *,
    int8_inputs: Int8Inputs = Int8Inputs.NEVER,
) -> Matrix:
    """A weight (N, K) that `fits`, padded with zeros to N in 64s and K in fours. W8A8 always takes inputs in 8 bits."""
    n, k = (padded(packed.shape[0], BLOCK), padded(packed.shape[1], STEP))
    codes = pairs(packed) if packed.scheme is Scheme.BF16 else words(packed, zero_point)
    scales = None
    if packed.scales is not None:
        columns = packed.scales.view(packed.shape[0], -1)
        rows = F.pad(columns.float(), (0, 0, 0, n - packed.shape[0])).bfloat16()
        scales = rows.view(n // BLOCK, BLOCK, -1).transpose(1, 2).contiguous()
    padded_bias = None if bias is None else vector(bias, n)
    if packed.scheme is Scheme.W8A8:
        int8_inputs = Int8Inputs.ALWAYS
    pointers = (address(codes), address(scales), address(padded_bias))
    made = Matrix(*pointers, n, k, packed.group or k, BITS[packed.scheme], int8_inputs)
    made.kept = (codes, scales, padded_bias)
    return made


def planes(made: Matrix) -> int:
    """Most planes of 8 bits in which a matrix takes its inputs as integers; 0: in bfloat16."""
    if made.bits == BITS[Scheme.BF16]:
        return 0
    return 1 if made.int8_inputs == Int8Inputs.ALWAYS else MAX_PLANES


def int_rows(rows: int, k: int, planes: int) -> IntRows:
    """Buffers for rows of `k` inputs as integers of so many planes; for 0 planes none."""
    if planes == 0:
        return IntRows()
    # One line of the cache more: rows a power of two apart would fall on the same few places of it.
    pitch, spans = (padded(k, BLOCK) + BLOCK) * planes, -(-k // SPAN) + 1
    codes = torch.zeros(rows, pitch, dtype=torch.int8)
    prefix_sum, scales = torch.zeros(spans, rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.float32)
    made = IntRows(address(codes), address(prefix_sum), address(scales), pitch, rows, planes)
    made.kept = (codes, prefix_sum, scales)
    return made


def scratch_bytes(rows: int) -> int:
    """Of one thread's gemm of so many rows: `Scratch` of gemm.h."""
    return PIECE * BLOCK * 2 + rows * BLOCK * 4


def pairs(packed: PackedWeight) -> Tensor:
    """A bf16 weight as (N / 64, K / 4, bytes of a line) uint8, padded."""
    n, k = padded(packed.shape[0], BLOCK), padded(packed.shape[1], STEP)
    codes = packed.codes.to(torch.bfloat16).view(torch.int16)
    codes = F.pad(codes, (0, k - packed.shape[1], 0, n - packed.shape[0]))
    places = codes.view(n // BLOCK, PARTS, BLOCK // PARTS, k // STEP, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return places.contiguous().view(torch.uint8).view(n // BLOCK, k // STEP, -1)


def words(packed: PackedWeight, zero_point: int) -> Tensor:
    """An 8-bit or 4-bit weight as (N / 64, lines, 64, 4) uint8, padded: a line has 4 inputs in 8 bits, 8 in 4."""
    n, k = padded(packed.shape[0], BLOCK), padded(packed.shape[1], STEP)
    codes = (
        unpack_nibbles(packed.codes) if packed.scheme is Scheme.INT4 else packed.codes.view(torch.uint8) ^ zero_point
    )
    codes = F.pad(codes, (0, k - packed.shape[1], 0, n - packed.shape[0]), value=zero_point)
    if packed.scheme is not Scheme.INT4:
        return codes.view(n // BLOCK, BLOCK, k // STEP, STEP).transpose(1, 2).contiguous()
    halves = codes.view(n // BLOCK, BLOCK, k // (2 * STEP), 2, STEP).permute(3, 0, 2, 1, 4)
    return (halves[0] | (halves[1] << 4)).contiguous()


def vector(values: Tensor, length: int) -> Tensor:
    """A copy in bfloat16, padded to `length` with zeros."""
    return F.pad(values.detach().to(torch.bfloat16, copy=True), (0, length - values.numel()))


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
