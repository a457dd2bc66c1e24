"""How a kernel is checked: on random inputs, against plain PyTorch in 16 bits and against the truth in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from edge_vla.quant import PackedWeight, Scheme

Tensors: TypeAlias = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """Inputs, and what to compute from them when asked. `exact`: the kernel's bits must equal those of `plain`.

    `launch` is what to time, where `kernel` computes more for the comparison than the engine would.
    """

    kernel: Callable[[], Tensors]
    plain: Callable[[], Tensors]
    truth: Callable[[], Tensors]
    moved_bytes: int  # that must be read or written at least once
    operations: int = 0
    exact: bool = False
    launch: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` and `allowed` belong to the output that comes closest to its limit."""

    error: float  # largest absolute error of any element, against the truth
    allowed: float
    equal: bool  # to plain PyTorch, bit for bit
    passed: bool


def evaluate(check: KernelCheck, factor: float = 2.0) -> Verdict:
    """A kernel passes with at most `factor` times plain PyTorch's error, or one rounding of the output's own type.

    An output that is not finite never passes.
    """
    errors = list[tuple[float, float]]()
    equal = True
    for ours, plain, truth in zip(check.kernel(), check.plain(), check.truth(), strict=True):
        allowed = max(factor * _distance(plain, truth), _eps(ours.dtype) * float(truth.abs().max()))
        errors.append((_distance(ours, truth), allowed))
        equal = equal and torch.equal(ours, plain)
    close = all(error <= allowed for error, allowed in errors)
    error, allowed = max(errors, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])
    return Verdict(error, allowed, equal, close and (equal or not check.exact))


def _distance(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).abs().max())


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


@dataclass(frozen=True, slots=True)
class RandomInputs:
    """Random tensors of one type on one device, from a seed."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    @staticmethod
    def seeded(seed: int, device: torch.device, dtype: torch.dtype) -> RandomInputs:
        return RandomInputs(device, dtype, torch.Generator(device).manual_seed(seed))

    def rows(self, *shape: int) -> Tensor:
        return self.float32(*shape).to(self.dtype)

    def float32(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def partial_sums(self, parts: int, *shape: int) -> Tensor:
        """`parts` float32 summands of a product, or with 0 parts the product itself."""
        return self.float32(parts, *shape) if parts else self.rows(*shape)

    def packed(self, scheme: Scheme, n: int, k: int, group: int | None = None) -> PackedWeight:
        """int4 or int8 (N, K): codes uniform, scales of eight significant bits within a factor of two."""
        int4 = scheme is Scheme.INT4
        low, high, dtype = (0, 256, torch.uint8) if int4 else (-127, 128, torch.int8)
        shape = (n, k // 2) if int4 else (n, k)
        codes = torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)
        count = (n,) if group is None else (n, k // group)
        scales = torch.randint(128, 256, count, generator=self.generator, device=self.device)
        return PackedWeight(scheme, (n, k), group, codes, (scales * 2.0**-14).half())
