"""Number formats of weights on disk: grids, rounding, packing, dequantisation.

int4, int3, int2: integer levels times a scale, packed low bits first, one scale per `group` inputs. The levels of int3
and int2 are among int4's, so `as_int4` changes no weight. uint4: int4 with a zero point in each group. int8: codes
-127..127 times a scale, one scale per output. w8a8: int8, and the gemm quantises each row of activations to int8 too.
Scales are float16 rounded *up* to eight significant bits: bf16 and fp16 both hold them exactly, and rounding to nearest
leaves no weight further than half a step from its code.
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

GROUPS: Final = (128, 64, 32)
INT8_MAX: Final = 127
BYTE: Final = 8  # bits; narrow codes are packed in eights, so that they fill whole bytes
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
    """Code `c` is level `lowest + step * c`; level times scale is the weight."""

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
    """What turns the levels of each group into weights: scales and, for uint4, zero points."""

    scales: Tensor  # (N, K/group) float32 of eight significant bits; int8: (N, 1)
    zeros: Tensor | None = None  # (N, K/group) uint8, the code of 0; uint4 only

    def offsets(self) -> Tensor:
        """(N, K/group) float32, the weight at level 0.

        Rounded to eight significant bits, because gemms take it as bf16: by at most a 32nd of a step.
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
    zeros: Tensor | None = None  # uint4: (N, K/group) uint8, the code of 0

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    @property
    def steps(self) -> Steps:
        assert self.scales is not None, "16 bits have no steps"
        return Steps(self.scales.float(), self.zeros)

    def check(self, name: str) -> PackedWeight:
        """Itself, or CheckpointError if shapes, types or values do not fit the scheme."""
        n, k = self.shape
        if self.scheme in GROUPED and (self.group is None or self.group % 2 or k % self.group):
            raise CheckpointError(f"{name}: group {self.group} must be even and divide the {k} inputs")
        if self.scheme in NARROW and k % BYTE:
            raise CheckpointError(f"{name}: {self.scheme.value} needs inputs in eights, got {k}")
        sixteens = {torch.bfloat16, torch.float16}
        types = sixteens if self.scheme is Scheme.BF16 else {torch.int8 if self.scheme in EIGHT else torch.uint8}
        if self.codes.dtype not in types or (self.scales is not None and self.scales.dtype != torch.half):
            raise CheckpointError(f"{name}: {self.codes.dtype} codes or their scales are not of {self.scheme.value}")
        codes, scales = _layout(self.scheme, n, k, self.group)
        got = (tuple(self.codes.shape), None if self.scales is None else tuple(self.scales.shape))
        if got != (codes, scales):
            raise CheckpointError(f"{name}: {self.scheme.value} needs codes {codes} and scales {scales}, got {got}")
        if not (self.scales is None or self.scales.is_meta or _positive(self.scales)):
            raise CheckpointError(f"{name}: scales must be finite and positive")
        if (self.scheme is Scheme.UINT4) != (self.zeros is not None):
            raise CheckpointError(f"{name}: expected zero points for uint4 and for it alone")
        if self.zeros is not None and (
            self.zeros.dtype != torch.uint8
            or tuple(self.zeros.shape) != scales
            or int(self.zeros.max()) >= GRIDS[self.scheme].count
        ):
            raise CheckpointError(f"{name}: zero points must be codes 0..15, uint8 {scales}")
        return self


def plan(bits: int, in_features: int, group: int | None, name: str) -> tuple[Scheme, int | None]:
    """Scheme and group of a weight.

    Without an explicit group, 4 bits and fewer take the largest of 128, 64 and 32 that divides `in_features`, else the
    weight becomes int8. UsageError for a group that does not fit; `name` is what it calls the weight.
    """
    if bits not in BITS:
        raise UsageError(f"--bits {bits}: choose one of {sorted(BITS)}")
    scheme = BITS[bits]
    if scheme not in GROUPED:
        if group is not None:
            raise UsageError(f"--group {group} is for --bits 4 and fewer; --bits {bits} has none: leave it out")
        return scheme, None
    if group is not None:
        if group < 2 or group % 2 or in_features % group:
            raise UsageError(
                f"--group {group} does not divide the {in_features} inputs of {name}: choose an even divisor"
            )
        if scheme in NARROW and in_features % BYTE:
            raise UsageError(
                f"--bits {bits} packs inputs in eights, {name} has {in_features}: leave out --group, or use --bits 4"
            )
        return scheme, group
    fitting = next((size for size in GROUPS if in_features % size == 0), None)
    return (scheme, fitting) if fitting else (Scheme.INT8, None)


def quantise(weight: Tensor, scheme: Scheme, group: int | None) -> PackedWeight:
    """(N, K) weight -> the nearest codes, on a grid that spans each group's largest magnitude."""
    n, k = weight.shape
    shape = (n, k)
    if scheme is Scheme.BF16:
        return PackedWeight(scheme, shape, None, sixteen(weight).contiguous(), None)
    real = weight.float()
    if scheme in EIGHT:
        scales = round_scale(real.abs().amax(dim=1) / INT8_MAX)
        codes = (real / scales[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return PackedWeight(scheme, shape, None, codes, scales.half())
    if group is None:
        raise AssertionError(f"{scheme.value} needs a group: `plan` chooses one")
    grouped = real.view(n, k // group, group)
    return pack(grouped, spanning(*extent(grouped, scheme), scheme), scheme, group)


def extent(grouped: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """(N, K/group, group) -> the least and the greatest weight that each group's grid must reach, both (N, K/group).

    With zero points, of the group and 0; else the largest magnitude, on both sides.
    """
    if scheme is Scheme.UINT4:
        return grouped.amin(dim=2).clamp_(max=0), grouped.amax(dim=2).clamp_(min=0)
    high = grouped.abs().amax(dim=2)
    return -high, high


def spanning(low: Tensor, high: Tensor, scheme: Scheme, part: float = 1.0) -> Steps:
    """The steps whose levels span this part of an extent."""
    grid = GRIDS[scheme]
    scales = round_scale((high - low) / ((grid.count - 1) * grid.step) * part)
    if scheme is not Scheme.UINT4:
        return Steps(scales)
    return Steps(scales, (-low * part / scales).round_().clamp_(0, grid.count - 1).to(torch.uint8))


def pack(grouped: Tensor, steps: Steps, scheme: Scheme, group: int | None) -> PackedWeight:
    """Weights (N, K/group, group) -> their nearest codes on these steps."""
    n, k = grouped.shape[0], grouped.shape[1] * grouped.shape[2]
    codes = nearest((grouped - steps.offsets()[..., None]) / steps.scales[..., None], scheme).view(n, k)
    return packed(codes, steps, scheme, group)


def packed(codes: Tensor, steps: Steps, scheme: Scheme, group: int | None) -> PackedWeight:
    """(N, K) uint8 codes -> the weight as it is stored."""
    n, k = codes.shape
    scales = (steps.scales if group else steps.scales[:, 0]).half()
    return PackedWeight(scheme, (n, k), group, pack_codes(codes, scheme), scales, steps.zeros)


def nearest(values: Tensor, scheme: Scheme) -> Tensor:
    """Weights in units of their scale -> uint8 codes of the nearest levels."""
    grid = GRIDS[scheme]
    zero, half = divmod(-grid.lowest / grid.step, 1)
    return (values / grid.step + half).round_().add_(zero).clamp_(0, grid.count - 1).to(torch.uint8)


def dequantise(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (N, K) weight, each number rounded once to `dtype`."""
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
    """int3 and int2 on int4's grid with the same scales, for kernels that have no narrower one; others as they are."""
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
    """(N, K) uint8 codes as stored: int8 as signed levels, the others in 4, 3 or 2 bits each."""
    if scheme in EIGHT:
        return GRIDS[scheme].levels(codes).to(torch.int8)
    return pack_nibbles(codes) if scheme in FOUR else pack_bits(codes, GRIDS[scheme].bits)


def unpack_codes(packed: Tensor, scheme: Scheme) -> Tensor:
    """Inverse of `pack_codes`."""
    if scheme in EIGHT:
        return (packed.to(torch.int16) - GRIDS[scheme].lowest).to(torch.uint8)
    return unpack_nibbles(packed) if scheme in FOUR else unpack_bits(packed, GRIDS[scheme].bits)


def pack_nibbles(codes: Tensor) -> Tensor:
    """(N, K) uint8 in 0..15 -> (N, K/2) uint8, the even column in the low nibble."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """(N, K) uint8 below 2**bits -> (N, bits K/8) uint8: eight codes to `bits` bytes, the lowest bits first."""
    n, k = codes.shape
    eights = codes.view(n, k // BYTE, BYTE).to(torch.int32)
    word = (eights << (bits * torch.arange(BYTE))).sum(dim=2)
    return ((word[..., None] >> (BYTE * torch.arange(bits))) & 0xFF).to(torch.uint8).view(n, -1)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack_bits`."""
    n, size = packed.shape
    word = (packed.view(n, size // bits, bits).to(torch.int32) << (BYTE * torch.arange(bits))).sum(dim=2)
    codes: Tensor = ((word[..., None] >> (bits * torch.arange(BYTE))) & (2**bits - 1)).to(torch.uint8)
    return codes.view(n, -1)


def round_scale(scale: Tensor) -> Tensor:
    """float32 -> the next float32 up that has eight significant bits and that fp16 holds; zeros become one.

    CheckpointError where fp16 would overflow.
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


def _positive(scales: Tensor) -> bool:
    return bool(torch.isfinite(scales).all() and (scales > 0).all())


def _layout(scheme: Scheme, n: int, k: int, group: int | None) -> tuple[tuple[int, int], tuple[int, ...] | None]:
    if scheme in GROUPED:
        return (n, k * GRIDS[scheme].bits // BYTE), (n, k // (group or k))
    return (n, k), (n,) if scheme in EIGHT else None
