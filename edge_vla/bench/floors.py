"""Harmless changes to the reference: what its agreement with itself under them is, is the noise floor.

`run again` changes nothing and `float32` is another system, so neither is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from edge_vla.bench.result import ROUNDING_NOISE
from edge_vla.errors import UsageError
from edge_vla.runtime import Policy, rounding_noise

COPIES: Final = 8


@contextmanager
def _math_attention(policy: Policy) -> Iterator[None]:  # noqa: ARG001
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _larger_batch(policy: Policy) -> Iterator[None]:
    """Each GEMM on eight copies of its rows: other blocks, another order of sums."""

    def repeat(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # noqa: ARG001
        return (inputs[0].repeat(COPIES, *[1] * (inputs[0].ndim - 1)), *inputs[1:])

    def first(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return output[: len(output) // COPIES]

    network = policy.network
    roots = [part for part in (network.vision, network.decoder) if isinstance(part, torch.nn.Module)]
    linears = [module for root in roots for module in root.modules() if isinstance(module, torch.nn.Linear)]
    if not linears:
        raise UsageError("this policy has no torch.nn.Linear to batch: use --vision torch --kernel torch")
    handles = [module.register_forward_pre_hook(repeat) for module in linears]
    handles += [module.register_forward_hook(first) for module in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounding_noise(policy: Policy) -> AbstractContextManager[None]:
    return rounding_noise(policy.network, seed=0)


CHANGES: Final[Mapping[str, Callable[[Policy], AbstractContextManager[None]]]] = {
    ROUNDING_NOISE: _rounding_noise,
    "math attention": _math_attention,
    "batch of 8": _larger_batch,
}
