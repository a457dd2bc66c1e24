"""How a kernel is judged: on random inputs, beside plain PyTorch in 16 bits and beside the truth in float64."""

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
    """Holds inputs; nothing is computed before it is asked for. `exact`: the kernel's bits must be those of `plain`.

    `launch` is what a clock runs, where `kernel` computes more, for the judge, than the engine would.
    """

    kernel: Callable[[], Tensors]
    plain: Callable[[], Tensors]
    truth: Callable[[], Tensors]
    moved: int  # bytes that must be read or written at least once
    operations: int = 0
    exact: bool = False
    launch: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` and `allowed` are of the output that comes closest to what it is allowed."""

    error: float  # the largest of all elements, against the truth
    allowed: float
    equal: bool  # to plain PyTorch, bit for bit
    passed: bool


def judge(check: KernelCheck, factor: float = 2.0) -> Verdict:
    """A kernel passes with at most `factor` times plain PyTorch's error, or one rounding of the output's own type.

    What is not finite never passes.
    """
    errors = list[tuple[float, float]]()
    equal = True
    for ours, plain, truth in zip(check.kernel(), check.plain(), check.truth(), strict=True):
        allowed = max(factor * _apart(plain, truth), _rounding(ours.dtype) * float(truth.abs().max()))
        errors.append((_apart(ours, truth), allowed))
        equal = equal and torch.equal(ours, plain)
    close = all(error <= allowed for error, allowed in errors)
    error, allowed = max(errors, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])
    return Verdict(error, allowed, equal, close and (equal or not check.exact))


def _apart(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).abs().max())


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


@dataclass(frozen=True, slots=True)
class Maker:
    """Random inputs of one type on one device."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    @staticmethod
    def seeded(seed: int, device: torch.device, dtype: torch.dtype) -> Maker:
        return Maker(device, dtype, torch.Generator(device).manual_seed(seed))

    def rows(self, *shape: int) -> Tensor:
        return self.wide(*shape).to(self.dtype)

    def wide(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def packed(self, scheme: Scheme, outer: int, inner: int, group: int | None = None) -> PackedWeight:
        """int4 or int8: every code as likely as every other, scales of eight bits within a factor of two."""
        int4 = scheme is Scheme.INT4
        low, high, kind = (0, 256, torch.uint8) if int4 else (-127, 128, torch.int8)
        shape = (outer, inner // 2) if int4 else (outer, inner)
        codes = torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=kind)
        count = (outer,) if group is None else (outer, inner // group)
        scales = torch.randint(128, 256, count, generator=self.generator, device=self.device)
        return PackedWeight(scheme, (outer, inner), group, codes, (scales * 2.0**-14).half())
