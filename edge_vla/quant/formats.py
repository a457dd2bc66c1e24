"""The formats on disk, and the arithmetic between them and real weights.

int4, int3, int2: codes for whole levels times a scale, packed low bits first, one scale per `group` inputs; the
levels of the narrow two are among int4's, so that `as_int4` changes no weight. uint4: int4 with a zero point in each
group. int8: codes -127..127 times a scale, one scale per output. w8a8: int8, and the product rounds each row of
activations to int8 too. Scales are float16 rounded *up* to eight significant bits: bf16 and fp16 both hold them
exactly, and rounding to nearest leaves no weight further than half a step from its code.
Knows nothing of layers, files or how good a code is for the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import CheckpointError, UsageError
from edge_vla.quant.packing import BYTE, pack_bits, pack_nibbles, unpack_bits, unpack_nibbles

GROUPS: Final = (128, 64, 32)
INT8_MAX: Final = 127
SMALLEST_SCALE: Final = 2.0**-24  # fp16's smallest positive number


class Scheme(str, Enum):
    BF16 = "bf16"
    INT8 = "int8"
    W8A8 = "w8a8"
    INT4 = "int4"
    UINT4 = "uint4"
    INT3 = "int3"
    INT2 = "int2"


BITS: Final[Mapping[int, Scheme]] = {
    16: Scheme.BF16,
    8: Scheme.INT8,
    4: Scheme.INT4,
    3: Scheme.INT3,
    2: Scheme.INT2,
}


@dataclass(frozen=True)
class Grid:
    """Code `c` stands for level `lowest + step * c`, and that for as many scales."""

    bits: int
    lowest: int
    step: int
    count: int

    def levels(self, codes: Tensor) -> Tensor:
        """uint8 codes -> float32 levels."""
        return codes.float() * self.step + self.lowest


# The narrow grids have no zero but are symmetric: with so few levels, one fewer on a side costs more than a zero gains.
GRIDS: Final[Mapping[Scheme, Grid]] = {
    Scheme.INT8: Grid(8, -127, 1, 255),
    Scheme.W8A8: Grid(8, -127, 1, 255),
    Scheme.INT4: Grid(4, -8, 1, 16),
    Scheme.UINT4: Grid(4, -8, 1, 16),
    Scheme.INT3: Grid(3, -7, 2, 8),
    Scheme.INT2: Grid(2, -3, 2, 4),
}
NARROW: Final = (Scheme.INT3, Scheme.INT2)
EIGHT: Final = (Scheme.INT8, Scheme.W8A8)
FOUR: Final = (Scheme.INT4, Scheme.UINT4)
GROUPED: Final = (*FOUR, *NARROW)


@dataclass(frozen=True)
class Steps:
    """Where the codes of each group stand: level times scale, plus what a zero point moves them by."""

    scales: Tensor  # (N, K/group) float32 of eight significant bits; int8: (N, 1)
    zeros: Tensor | None = None  # (N, K/group) uint8, the code that stands for 0; uint4 only

    def offsets(self) -> Tensor:
        """(N, K/group) float32, what level 0 stands for.

        Rounded to eight significant bits, because products take it as bf16: by a 32nd of a step at most.
        """
        if self.zeros is None:
            return torch.zeros_like(self.scales)
        return ((-GRIDS[Scheme.UINT4].lowest - self.zeros.float()) * self.scales).bfloat16().float()

    def cpu(self) -> Steps:
        return Steps(self.scales.cpu(), None if self.zeros is None else self.zeros.cpu())


@dataclass(frozen=True)
class PackedWeight:
    """One linear layer's weight as stored. `shape` is (out features, in features) of the real weight."""

    scheme: Scheme
    shape: tuple[int, int]
    group: int | None
    codes: Tensor  # 4, 3, 2 bits: (N, bits K/8) uint8; int8: (N, K) int8; bf16: (N, K) in a 16-bit float type
    scales: Tensor | None  # grouped: (N, K/group) float16; int8: (N,) float16
    zeros: Tensor | None = None  # uint4: (N, K/group) uint8, the code that stands for 0

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    @property
    def steps(self) -> Steps:
        assert self.scales is not None, "16 bits have no steps"
        return Steps(self.scales.float(), self.zeros)

    def check(self, name: str) -> PackedWeight:
        """Itself, or CheckpointError if shapes and types do not fit the scheme."""
        outer, inner = self.shape
        if self.scheme in GROUPED and (self.group is None or self.group % 2 or inner % self.group):
            raise CheckpointError(f"{name}: group {self.group} must be even and divide {inner} inputs")
        if self.scheme in NARROW and inner % BYTE:
            raise CheckpointError(f"{name}: {self.scheme.value} needs inputs in eights, got {inner}")
        sixteens = {torch.bfloat16, torch.float16}
        types = sixteens if self.scheme is Scheme.BF16 else {torch.int8 if self.scheme in EIGHT else torch.uint8}
        if self.codes.dtype not in types or (self.scales is not None and self.scales.dtype != torch.half):
            raise CheckpointError(f"{name}: {self.codes.dtype} is no type of {self.scheme.value} codes and its scales")
        codes, scales = _layout(self.scheme, outer, inner, self.group)
        got = (tuple(self.codes.shape), None if self.scales is None else tuple(self.scales.shape))
        if got != (codes, scales):
            raise CheckpointError(f"{name}: {self.scheme.value} needs codes {codes} and scales {scales}, got {got}")
        if self.scales is not None and not (torch.isfinite(self.scales).all() and (self.scales > 0).all()):
            raise CheckpointError(f"{name}: scales must be finite and positive")
        if (self.scheme is Scheme.UINT4) != (self.zeros is not None):
            raise CheckpointError(f"{name}: uint4, and it alone, has zero points")
        if self.zeros is not None and (
            self.zeros.dtype != torch.uint8
            or tuple(self.zeros.shape) != scales
            or int(self.zeros.max()) >= GRIDS[self.scheme].count
        ):
            raise CheckpointError(f"{name}: zero points must be codes 0..15, uint8 {scales}")
        return self


def plan(bits: int, inner: int, group: int | None, name: str) -> tuple[Scheme, int | None]:
    """Scheme and group for a weight with `inner` inputs.

    Without an explicit group, 4 bits and fewer take the largest of 128, 64 and 32 that divides, else the tensor
    becomes int8. An explicit group that does not divide raises UsageError.
    """
    if bits not in BITS:
        raise UsageError(f"--bits {bits}: choose one of {sorted(BITS)}")
    scheme = BITS[bits]
    if scheme not in GROUPED:
        if group is not None:
            raise UsageError(f"--group {group} is for --bits 4 and fewer; --bits {bits} has none")
        return scheme, None
    if group is not None:
        if group < 2 or group % 2 or inner % group:
            raise UsageError(f"--group {group} does not divide the {inner} inputs of {name}: choose an even divisor")
        if scheme in NARROW and inner % BYTE:
            raise UsageError(f"--bits {bits} packs inputs in eights, {name} has {inner}: leave out --group, or 4 bits")
        return scheme, group
    fitting = next((size for size in GROUPS if inner % size == 0), None)
    return (scheme, fitting) if fitting else (Scheme.INT8, None)


def quantise(weight: Tensor, scheme: Scheme, group: int | None) -> PackedWeight:
    """Round a (N, K) weight to the nearest code; the grid spans each group's largest magnitude."""
    outer, inner = weight.shape
    shape = (outer, inner)
    if scheme is Scheme.BF16:
        return PackedWeight(scheme, shape, None, sixteen(weight).contiguous(), None)
    real = weight.float()
    if scheme in EIGHT:
        scales = round_scale(real.abs().amax(dim=1) / INT8_MAX)
        codes = (real / scales[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return PackedWeight(scheme, shape, None, codes, scales.half())
    if group is None:
        raise AssertionError(f"{scheme.value} needs a group: ask `plan` for one")
    grouped = real.view(outer, inner // group, group)
    return pack(grouped, spanning(*extent(grouped, scheme), scheme), scheme, group)


def extent(grouped: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Least and greatest weight that each group's grid must reach: (N, K/group, group) -> twice (N, K/group).

    With zero points those of the group and 0, else the largest magnitude on either side.
    """
    if scheme is Scheme.UINT4:
        return grouped.amin(dim=2).clamp_(max=0), grouped.amax(dim=2).clamp_(min=0)
    high = grouped.abs().amax(dim=2)
    return -high, high


def spanning(low: Tensor, high: Tensor, scheme: Scheme, part: float = 1.0) -> Steps:
    """The steps whose levels reach over this part of an extent."""
    grid = GRIDS[scheme]
    scales = round_scale((high - low) / ((grid.count - 1) * grid.step) * part)
    if scheme is not Scheme.UINT4:
        return Steps(scales)
    return Steps(scales, (-low * part / scales).round_().clamp_(0, grid.count - 1).to(torch.uint8))


def pack(grouped: Tensor, steps: Steps, scheme: Scheme, group: int | None) -> PackedWeight:
    """Weights (N, K/group, group) at their nearest codes on these steps."""
    outer, inner = grouped.shape[0], grouped.shape[1] * grouped.shape[2]
    codes = nearest((grouped - steps.offsets()[..., None]) / steps.scales[..., None], scheme).view(outer, inner)
    return packed(codes, steps, scheme, group)


def packed(codes: Tensor, steps: Steps, scheme: Scheme, group: int | None) -> PackedWeight:
    """(N, K) uint8 codes as they are stored."""
    outer, inner = codes.shape
    scales = (steps.scales if group else steps.scales[:, 0]).half()
    return PackedWeight(scheme, (outer, inner), group, pack_codes(codes, scheme), scales, steps.zeros)


def nearest(values: Tensor, scheme: Scheme) -> Tensor:
    """Weights in units of their scale -> uint8 codes of the nearest levels."""
    grid = GRIDS[scheme]
    whole, half = divmod(-grid.lowest / grid.step, 1)
    return (values / grid.step + half).round_().add_(whole).clamp_(0, grid.count - 1).to(torch.uint8)


def dequantise(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (N, K) weight that the codes stand for, rounded once to `dtype`."""
    if packed.scales is None:
        return packed.codes.to(dtype)
    scales = packed.scales.float()
    if packed.scheme in EIGHT:
        return (packed.codes.float() * scales[:, None]).to(dtype)
    weight = GRIDS[packed.scheme].levels(unpack_codes(packed.codes, packed.scheme))
    weight.mul_(expand_scales(scales, packed.shape))
    if packed.zeros is not None:
        weight.add_(expand_scales(packed.steps.offsets(), packed.shape))  # exact: both have few bits
    return weight.to(dtype)


def as_int4(packed: PackedWeight) -> PackedWeight:
    """A narrow weight on int4's grid with the same scales, for kernels that know none narrower; others as they are."""
    if packed.scheme not in NARROW:
        return packed
    levels = GRIDS[packed.scheme].levels(unpack_codes(packed.codes, packed.scheme))
    codes = (levels - GRIDS[Scheme.INT4].lowest).to(torch.uint8)
    return replace(packed, scheme=Scheme.INT4, codes=pack_nibbles(codes))


def expand_scales(scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """(N, K/group) -> (N, K)."""
    return scales[..., None].expand(*scales.shape, shape[1] // scales.shape[1]).reshape(shape)


def sixteen(tensor: Tensor) -> Tensor:
    """A 16-bit float tensor as it is, a wider one rounded to bfloat16; CheckpointError if it does not fit."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor
    rounded = tensor.bfloat16()
    if not torch.isfinite(rounded).all():
        raise CheckpointError(f"a weight of magnitude {float(tensor.abs().max()):.3g} does not fit bfloat16")
    return rounded


def pack_codes(codes: Tensor, scheme: Scheme) -> Tensor:
    """(N, K) uint8 codes as they are stored: int8 as signed levels, the rest in 4, 3 or 2 bits each."""
    if scheme in EIGHT:
        return GRIDS[scheme].levels(codes).to(torch.int8)
    return pack_nibbles(codes) if scheme in FOUR else pack_bits(codes, GRIDS[scheme].bits)


def unpack_codes(packed: Tensor, scheme: Scheme) -> Tensor:
    """Inverse of `pack_codes`."""
    if scheme in EIGHT:
        return (packed.to(torch.int16) - GRIDS[scheme].lowest).to(torch.uint8)
    return unpack_nibbles(packed) if scheme in FOUR else unpack_bits(packed, GRIDS[scheme].bits)


def round_scale(scale: Tensor) -> Tensor:
    """float32 -> the next float32 that has eight significant bits and that fp16 holds; zeros become one.

    Raises CheckpointError where fp16 would overflow.
    """
    mantissa, exponent = torch.frexp(scale)
    stepped = torch.ldexp(torch.ceil(mantissa * 256) / 256, exponent)
    stepped = torch.ceil(stepped / SMALLEST_SCALE) * SMALLEST_SCALE  # only subnormals move
    if (stepped > torch.finfo(torch.float16).max).any():
        raise CheckpointError(f"a weight of magnitude {float(scale.max()):.3g} per step is too large for fp16 scales")
    return torch.where(scale == 0, torch.ones_like(scale), stepped)


def stored_bytes(scheme: Scheme, shape: tuple[int, int], group: int | None) -> int:
    """Bytes of a weight on disk and on the device: codes, scales and zero points."""
    codes, scales = _layout(scheme, *shape, group)
    step = 3 if scheme is Scheme.UINT4 else 2
    return math.prod(codes) * (2 if scheme is Scheme.BF16 else 1) + (step * math.prod(scales) if scales else 0)


def relative_error(weight: Tensor, packed: PackedWeight) -> float:
    """Frobenius norm of the rounding error over that of the weight."""
    real = weight.float()
    norm = float(real.norm())
    return float((dequantise(packed) - real).norm()) / norm if norm else 0.0


def _layout(
    scheme: Scheme, outer: int, inner: int, group: int | None
) -> tuple[tuple[int, int], tuple[int, ...] | None]:
    if scheme in GROUPED:
        return (outer, inner * GRIDS[scheme].bits // BYTE), (outer, inner // (group or inner))
    return (outer, inner), (outer,) if scheme in EIGHT else None
