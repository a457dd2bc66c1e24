"""torch's own packed products on the CPU, which stream int4 or int8 weights at memory speed.

They are private operators, fast in bf16 only: each is checked once before it is used. One that is less exact than a
bfloat16 product of the dequantised weight is not used, as its int4 product on 64-bit Arm, which rounds between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise, unpack_nibbles

GROUPS = (32, 64, 128, 256)  # the groups that the operator accepts
ROWS = 16  # its rows come in blocks of this many
# Error over norm of a product. Normal values rounded to bfloat16 err by 0.0017 of theirs: weight and result, two
# independent roundings, by 1.41 times that; one rounding more by 1.73 times, and is too much.
BF16_ERROR: Final = 0.0026


class CpuInt4(nn.Module):
    name = "torch-int4pack"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:
        fits = packed.group in GROUPS and packed.shape[0] % ROWS == 0
        return fits and dtype == torch.bfloat16 and device.type == "cpu" and _int4_works()

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        assert packed.group is not None, "int4 has a group"
        assert packed.scales is not None, "int4 has scales"
        self.group = packed.group
        self.n = packed.shape[0]
        codes = unpack_nibbles(packed.codes).to(torch.int32)
        self.codes = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = packed.scales.to(dtype).T.contiguous()
        # The operator computes (code - 8) * scale + offset; a symmetric grid has offset 0.
        offsets = packed.steps.offsets().to(dtype).T
        self.scales_and_zeros = torch.stack([scales, offsets], dim=-1).to(device)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch._weight_int4pack_mm_for_cpu(flat, self.codes, self.group, self.scales_and_zeros)
        return out.view(*x.shape[:-1], self.n)


class CpuInt8(nn.Module):
    name = "torch-int8pack"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:
        fits = packed.scheme is Scheme.INT8 and packed.shape[0] % ROWS == 0 and packed.shape[1] % ROWS == 0
        return fits and dtype == torch.bfloat16 and device.type == "cpu" and _int8_works()

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        assert packed.scales is not None, "int8 has scales"
        # Copies: the operator reads aligned vectors, and crashes on the odd addresses of a mapped file.
        self.codes = packed.codes.to(device, copy=True)
        self.scales = packed.scales.to(device, dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return torch._weight_int8pack_mm(flat, self.codes, self.scales).view(*x.shape[:-1], self.codes.shape[0])


@cache
def _int4_works() -> bool:
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu") and agrees(CpuInt4, Scheme.INT4, 32)


@cache
def _int8_works() -> bool:
    return hasattr(torch.ops.aten, "_weight_int8pack_mm") and agrees(CpuInt8, Scheme.INT8, None)


def agrees(kernel: Callable[..., nn.Module], scheme: Scheme, group: int | None, error: float = BF16_ERROR) -> bool:
    """Whether a small product is the dequantised one: the norm of what they differ by is at most `error` of its own."""
    generator = torch.Generator().manual_seed(0)
    packed = quantise(torch.randn(64, 256, generator=generator), scheme, group)
    x = torch.randn(16, 256, generator=generator).to(torch.bfloat16)
    expected = x.float() @ dequantise(packed).T
    try:
        got = kernel(packed, torch.bfloat16, torch.device("cpu"))(x).float()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((got - expected).norm() <= error * expected.norm())
