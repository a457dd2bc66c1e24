"""A gemv over the packed weight for up to 16 rows, a gemm over the dequantised weight for more.

A decode step reads each weight once, so its bytes decide the time, and the packed product runs at memory speed. A
prefill multiplies each weight hundreds of times, so arithmetic decides, and the weight is dequantised, a slice at a
time, into one scratch buffer that all layers share.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.cpu.native.int4 import BLOCK, dequantise_int4
from edge_vla.runtime.kernels.cpu import CpuInt4, CpuInt8
from edge_vla.runtime.kernels.w8a8 import multiply, works

GEMV_ROWS = 16  # most rows of the packed product: a decode step, a draft being verified
SLICE = 512  # outputs dequantised at a time: they stay in a shared cache and still keep the product busy


class ByRows(nn.Module):
    """`gemv` for a decode step, `gemm` for a prefill."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gemv(x) if x.numel() // x.shape[-1] <= GEMV_ROWS else self.gemm(x)

    def gemv(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out

    def gemm(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class GemmInt4(ByRows, CpuInt4):
    """The gemm: codes to bfloat16, then torch's bfloat16 product."""

    name = "torch-int4pack/bf16"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:
        return packed.shape[0] % BLOCK == 0 and CpuInt4.runs(packed, dtype, device) and _layout_is_known()

    def gemm(self, x: Tensor) -> Tensor:
        k = x.shape[-1]
        flat = x.reshape(-1, k)
        lines = self.codes.view(-1, k, BLOCK // 2)
        step = max(1, SLICE // BLOCK)
        out = flat.new_empty(flat.shape[0], self.n)
        for first in range(0, lines.shape[0], step):
            last = min(first + step, lines.shape[0])
            weight = _scratch(k, (last - first) * BLOCK)
            dequantise_int4(lines, self.scales_and_zeros, self.group, first, last, weight)
            if last - first == lines.shape[0]:
                torch.mm(flat, weight, out=out)
            else:
                out[:, first * BLOCK : last * BLOCK] = torch.mm(flat, weight)
        return out.view(*x.shape[:-1], self.n)


class GemmInt8(ByRows, CpuInt8):
    """The gemm: codes to bfloat16, which holds them exactly, torch's product, then the scales."""

    name = "torch-int8pack/bf16"

    def gemm(self, x: Tensor) -> Tensor:
        k, n = x.shape[-1], self.codes.shape[0]
        flat = x.reshape(-1, k)
        out = flat.new_empty(flat.shape[0], n)
        for first in range(0, n, SLICE):
            codes = self.codes[first : first + SLICE]
            weight = _scratch(codes.shape[0], k).copy_(codes)
            torch.mul(F.linear(flat, weight), self.scales[first : first + SLICE], out=out[:, first : first + SLICE])
        return out.view(*x.shape[:-1], n)


class DynamicInt8(GemmInt8):
    """The gemm: activations rounded to int8, one scale a row, then torch's int8 product.

    Never chosen by `auto`, because it rounds what no other kernel rounds.
    """

    name = "torch-int8pack/int8"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:
        return CpuInt8.runs(packed, dtype, device) and works()

    def gemm(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return multiply(flat, self.codes, self.scales.float()).view(*x.shape[:-1], -1)


_buffer = torch.empty(0, dtype=torch.bfloat16)


def _scratch(rows: int, columns: int) -> Tensor:
    """(rows, columns) of the shared buffer, overwritten by the next call."""
    global _buffer
    if _buffer.numel() < rows * columns:
        with torch.inference_mode(False):  # made in that mode it could not be written to outside of it
            _buffer = torch.empty(rows * columns, dtype=torch.bfloat16)
    return _buffer[: rows * columns].view(rows, columns)


@cache
def _layout_is_known() -> bool:
    """torch packs differently on each instruction set: two blocks, two groups, every code, against `dequantise`."""
    packed = quantise(torch.randn(2 * BLOCK, 64, generator=torch.Generator().manual_seed(0)), Scheme.INT4, 32)
    kernel = CpuInt4(packed, torch.bfloat16, torch.device("cpu"))
    out = torch.empty(64, 2 * BLOCK, dtype=torch.bfloat16)
    if kernel.codes.numel() != out.numel() // 2 or kernel.codes.dtype != torch.uint8:
        return False
    dequantise_int4(kernel.codes.view(2, 64, BLOCK // 2), kernel.scales_and_zeros, 32, 0, 2, out)
    return torch.equal(out.T, dequantise(packed, torch.bfloat16))
