"""int4 on 64-bit Arm: torch's dynamic 4-bit product, which is KleidiAI there.

It rounds each row of activations to int8, which moves tokens of golden frames, so only its name chooses it. Elsewhere
the operator is a slow loop with the same arithmetic; under emulation both were run, on an Arm processor neither.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.kernels.cpu import agrees

GROUPS = (32, 64, 128, 256)
ERROR: Final = 0.012  # over norm; rounding 256 normal activations of a row to int8 makes 0.007


class DynamicInt4(nn.Module):
    name = "torch-dynamic-int4"

    @classmethod
    def runs(cls, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> bool:
        fits = packed.scheme is Scheme.INT4 and packed.group in GROUPS and packed.shape[0] % 2 == 0
        return fits and dtype == torch.bfloat16 and device.type == "cpu" and _works()

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, device: torch.device) -> None:  # noqa: ARG002
        super().__init__()
        assert packed.group is not None, "int4 has a group"
        assert packed.scales is not None, "int4 has scales"
        self.n, self.k, self.group = *packed.shape, packed.group
        # Copies: a weight mapped from a file may lie at an odd address.
        codes, scales = packed.codes.to(device, copy=True), packed.scales.to(device, torch.bfloat16)
        pack = torch.ops.aten._dyn_quant_pack_4bit_weight
        self.codes: Tensor = pack(codes, scales, None, self.group, self.k, self.n)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.k).float()
        multiply = torch.ops.aten._dyn_quant_matmul_4bit
        out: Tensor = multiply(flat, self.codes, self.group, self.k, self.n)
        return out.to(x.dtype).view(*x.shape[:-1], self.n)


@cache
def _works() -> bool:
    """The operator is there, and costs no more than rounding activations to int8."""
    names = ("_dyn_quant_pack_4bit_weight", "_dyn_quant_matmul_4bit")
    return all(hasattr(torch.ops.aten, name) for name in names) and agrees(DynamicInt4, Scheme.INT4, 32, ERROR)
