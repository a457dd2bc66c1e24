"""bf16 products by float32's, for processors without instructions for bf16, where torch takes several times as long.

Both sum in float32 and round the sum to bf16 once; only the order of additions differs, as it does between processors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.processor import features
from edge_vla.runtime.cpu.native.targets import forced
from edge_vla.runtime.network import Network

BF16_INSTRUCTIONS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # by Linux's names, of x86 and Arm
KEPT: Final = 1 << 30  # bytes


def widening_pays(network: Network) -> bool:
    """Whether it is bf16 on such a processor, or on one that `EDGE_VLA_TARGET` has us take for such."""
    target = forced()
    there = features() if target is None else target.features
    return network.dtype == torch.bfloat16 and network.device.type == "cpu" and not there & BF16_INSTRUCTIONS


@contextmanager
def widened(network: Network) -> Iterator[None]:
    """While open, every linear layer and convolution of `network` that is torch's own computes so.

    Their weights are kept in float32 meanwhile if all of them fit `KEPT` bytes; else each is widened at each use.
    """
    modules = [part for part in (network.vision, network.decoder) if isinstance(part, nn.Module)]
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
