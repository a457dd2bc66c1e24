"""bf16 products by float32's, for processors without instructions for bf16, where torch takes several times as long.

Both sum in float32 and round the sum to bf16 once; only the order of additions differs, as it does between processors.
Gradients that go through such a product are float32's too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.processor import features

INSTRUCTIONS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # of bf16, by Linux's names, on x86 and Arm
LIMIT: Final = "ONEDNN_MAX_CPU_ISA"  # an environment variable: the most that torch's products may use
LIMITED: Final = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")  # its values without bf16
KEPT: Final = 1 << 30  # bytes of widened weights


def widening_pays(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products are in bf16 on a processor that has none, or whose instructions torch must not use."""
    none = not features() & INSTRUCTIONS or os.environ.get(LIMIT, "").upper() in LIMITED
    return none and dtype == torch.bfloat16 and device.type == "cpu"


@contextmanager
def widened(*modules: nn.Module) -> Iterator[None]:
    """While open, every linear layer and convolution of `modules` computes so. What is no module of torch's own stays.

    Their weights are kept in float32 meanwhile if all of them fit `KEPT` bytes; else each is widened at each use.
    """
    found = [one for part in modules for one in part.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    keep = sum(4 * one.weight.numel() for one in found) <= KEPT
    for one in found:
        one.forward = _Widened(one, keep=keep)  # type: ignore[assignment]
    try:
        yield
    finally:
        for one in found:
            del one.forward


class _Widened:
    """The forward of a linear layer or convolution in bf16."""

    def __init__(self, module: nn.Linear | nn.Conv2d, *, keep: bool) -> None:
        self.module = module
        self.kept = module.weight.float() if keep else None

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        weight = module.weight.float() if self.kept is None else self.kept
        bias = None if module.bias is None else module.bias.float()
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x.float(), weight, bias, module.stride).to(x.dtype)
        return F.linear(x.float(), weight, bias).to(x.dtype)
