"""The formats on disk, and the arithmetic between them and real weights.

int4: codes 0..15 for values -8..7 times a scale, two codes a byte, low nibble first, one scale per `group` inputs.
int8: codes -127..127 times a scale, one scale per output. Scales are float16 rounded *up* to eight significant
bits: bf16 and fp16 both hold them exactly, and no weight is further than half a step from its code.
Knows nothing of layers, files or how good a code is for the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import CheckpointError, UsageError

GROUPS: Final = (128, 64, 32)
INT4_LEVELS: Final = 15
INT4_ZERO: Final = 8
INT8_MAX: Final = 127
SMALLEST_SCALE: Final = 2.0**-24  # fp16's smallest positive number


class Scheme(str, Enum):
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


BITS: Final[Mapping[int, Scheme]] = {16: Scheme.BF16, 8: Scheme.INT8, 4: Scheme.INT4}


@dataclass(frozen=True)
class PackedWeight:
    """One linear layer's weight as stored. `shape` is (out features, in features) of the real weight."""

    scheme: Scheme
    shape: tuple[int, int]
    group: int | None
    codes: Tensor  # int4: (N, K/2) uint8; int8: (N, K) int8; bf16: (N, K) in a 16-bit float type
    scales: Tensor | None  # int4: (N, K/group) float16; int8: (N,) float16

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def check(self, name: str) -> PackedWeight:
        """Itself, or CheckpointError if shapes and types do not fit the scheme."""
        outer, inner = self.shape
        if self.scheme is Scheme.INT4 and (self.group is None or self.group % 2 or inner % self.group):
            raise CheckpointError(f"{name}: group {self.group} must be even and divide {inner} inputs")
        types = {Scheme.INT4: {torch.uint8}, Scheme.INT8: {torch.int8}, Scheme.BF16: {torch.bfloat16, torch.float16}}
        if self.codes.dtype not in types[self.scheme] or (self.scales is not None and self.scales.dtype != torch.half):
            raise CheckpointError(f"{name}: {self.codes.dtype} is no type of {self.scheme.value} codes and its scales")
        codes, scales = _layout(self.scheme, outer, inner, self.group)
        got = (tuple(self.codes.shape), None if self.scales is None else tuple(self.scales.shape))
        if got != (codes, scales):
            raise CheckpointError(f"{name}: {self.scheme.value} needs codes {codes} and scales {scales}, got {got}")
        if self.scales is not None and not (torch.isfinite(self.scales).all() and (self.scales > 0).all()):
            raise CheckpointError(f"{name}: scales must be finite and positive")
        return self


def plan(bits: int, inner: int, group: int | None, name: str) -> tuple[Scheme, int | None]:
    """Scheme and group for a weight with `inner` inputs.

    Without an explicit group, int4 takes the largest of 128, 64 and 32 that divides, else the tensor becomes
    int8. An explicit group that does not divide raises UsageError.
    """
    if bits not in BITS:
        raise UsageError(f"--bits {bits}: choose one of {sorted(BITS)}")
    scheme = BITS[bits]
    if scheme is not Scheme.INT4:
        if group is not None:
            raise UsageError(f"--group {group} is for --bits 4; --bits {bits} has none")
        return scheme, None
    if group is not None:
        if group < 2 or group % 2 or inner % group:
            raise UsageError(f"--group {group} does not divide the {inner} inputs of {name}: choose an even divisor")
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
    if scheme is Scheme.INT8:
        scales = round_scale(real.abs().amax(dim=1) / INT8_MAX)
        codes = (real / scales[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return PackedWeight(scheme, shape, None, codes, scales.half())
    if group is None:
        raise AssertionError("int4 needs a group: ask `plan` for one")
    grouped = real.view(outer, inner // group, group)
    scales = round_scale(grouped.abs().amax(dim=2) * 2 / INT4_LEVELS)
    codes = (grouped / scales[..., None]).round_().clamp_(-INT4_ZERO, INT4_LEVELS - INT4_ZERO) + INT4_ZERO
    return PackedWeight(scheme, shape, group, pack_nibbles(codes.view(outer, inner).to(torch.uint8)), scales.half())


def dequantise(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (N, K) weight that the codes stand for, rounded once to `dtype`."""
    if packed.scales is None:
        return packed.codes.to(dtype)
    scales = packed.scales.float()
    if packed.scheme is Scheme.INT8:
        return (packed.codes.float() * scales[:, None]).to(dtype)
    outer, inner = packed.shape
    codes = unpack_nibbles(packed.codes).view(outer, scales.shape[1], -1).float() - INT4_ZERO
    return (codes * scales[..., None]).view(outer, inner).to(dtype)


def sixteen(tensor: Tensor) -> Tensor:
    """A 16-bit float tensor as it is, a wider one rounded to bfloat16; CheckpointError if it does not fit."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor
    rounded = tensor.bfloat16()
    if not torch.isfinite(rounded).all():
        raise CheckpointError(f"a weight of magnitude {float(tensor.abs().max()):.3g} does not fit bfloat16")
    return rounded


def pack_nibbles(codes: Tensor) -> Tensor:
    """(N, K) uint8 in 0..15 -> (N, K/2) uint8, the even column in the low nibble."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)


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
    """Bytes of a weight on disk and on the device: codes and scales."""
    codes, scales = _layout(scheme, *shape, group)
    return math.prod(codes) * (2 if scheme is Scheme.BF16 else 1) + (2 * math.prod(scales) if scales else 0)


def relative_error(weight: Tensor, packed: PackedWeight) -> float:
    """Frobenius norm of the rounding error over that of the weight."""
    real = weight.float()
    norm = float(real.norm())
    return float((dequantise(packed) - real).norm()) / norm if norm else 0.0


def _layout(
    scheme: Scheme, outer: int, inner: int, group: int | None
) -> tuple[tuple[int, int], tuple[int, ...] | None]:
    if scheme is Scheme.INT4:
        return (outer, inner // 2), (outer, inner // (group or inner))
    return (outer, inner), (outer,) if scheme is Scheme.INT8 else None
