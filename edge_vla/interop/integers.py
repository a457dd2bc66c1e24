"""A matrix of integer levels times scales, as in GPTQ and compressed-tensors, and 32-bit words of codes.

Knows what the numbers mean and when a format of ours holds the same. Knows nothing of files and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import CheckpointError
from edge_vla.interop.layout import Parts, Shape
from edge_vla.quant import PackedWeight, Scheme, pack_codes, pack_nibbles, unpack_codes, unpack_nibbles

BITS: Final = (4, 8)
NIBBLE: Final = 4
WORD: Final = 32  # bits
SCHEMES: Final = {4: Scheme.INT4, 8: Scheme.INT8}


@dataclass(frozen=True)
class Integers:
    """Weight (n, k) is `(codes[n, k] - zeros[n, g]) * scales[n, g]` where g is `groups[k]`."""

    bits: int
    codes: Tensor  # (N, K) uint8
    zeros: Tensor  # (N, G) uint8
    scales: Tensor  # (N, G) float
    groups: Tensor  # (K,) int64, below G

    def weight(self) -> Tensor:
        """(N, K) in the scales' type, each product rounded once: what the libraries dequantise to."""
        levels = self.codes.to(torch.int16) - self.zeros.to(torch.int16)[:, self.groups]
        return levels.to(self.scales.dtype) * self.scales[:, self.groups]

    def packed(self) -> PackedWeight | None:
        """The same codes as int4 or int8, scales rounded to the eight significant bits that those hold.

        None where the grids differ: zeros off the middle, inputs out of order, groups of int8, scales beyond fp16.
        """
        (n, k), count = self.codes.shape, self.scales.shape[1]
        group, scheme = k // count, SCHEMES[self.bits]
        scales = self.scales.bfloat16().half()
        fits = (
            bool((self.zeros == middle(self.bits)).all())
            and torch.equal(self.groups, in_order(k, group))
            and bool((scales > 0).all())
            and torch.equal(scales.float(), self.scales.bfloat16().float())
        )
        if scheme is Scheme.INT8:
            fits = fits and count == 1 and bool((self.codes > 0).all())  # -128 is no level of int8
            codes = self.codes - 1  # int8's codes count from -127
            return PackedWeight(scheme, (n, k), None, pack_codes(codes, scheme), scales[:, 0]) if fits else None
        return PackedWeight(scheme, (n, k), group, pack_nibbles(self.codes), scales) if fits else None


def unsigned(packed: PackedWeight) -> Tensor:
    """(N, K) uint8 codes of an int4 or int8 weight on the grid whose zero is in the middle."""
    return unpack_codes(packed.codes, packed.scheme) + int(packed.scheme is Scheme.INT8)


def symmetric_scales(packed: PackedWeight, bits: int) -> Tensor:
    """(N, G) scales of a weight that `unsigned` can give the codes of."""
    if packed.scheme is not SCHEMES[bits] or packed.scales is None:
        raise AssertionError(f"{packed.scheme.value} is not {bits} bits around the middle")
    return packed.scales.view(packed.shape[0], -1)


def middle(bits: int) -> int:
    """The code of zero on a symmetric grid."""
    return 1 << (bits - 1)


def in_order(k: int, group: int) -> Tensor:
    """(K,) int64: each input's group where groups are runs of `group` inputs."""
    return torch.arange(k) // group


def check_group(parts: Parts, shape: tuple[int, int], group: int | None) -> tuple[int, int]:
    """The shape itself, or CheckpointError if groups of this size do not divide its inputs."""
    k = shape[1]
    if not k or k % (group or k):
        raise CheckpointError(f"{parts.what}: group_size {group} does not divide its {k} inputs: wrong config.json?")
    return shape


def int32_part(parts: Parts, part: str, shape: Shape) -> Tensor:
    """A part that is made of 32-bit words; CheckpointError if it is not, or of another shape."""
    words = parts.load(part, shape)
    if words.dtype != torch.int32:
        raise CheckpointError(f"{parts.what}.{part} is {words.dtype}, expected torch.int32: download it again")
    return words


def order(parts: Parts, part: str, k: int, count: int) -> Tensor:
    """(K,) int64: each input's group, as `part` says it or, without it, in order."""
    if part not in parts:
        return in_order(k, k // count)
    groups = parts.load(part, (k,))
    if groups.is_floating_point() or groups.min() < 0 or groups.max() >= count:
        raise CheckpointError(f"{parts.what}.{part} names a group outside 0..{count - 1}: download it again")
    return groups.long()


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """(R, C) uint8 codes -> (R, bits C/32) int32, the lowest bits first. Whole words only."""
    octets = pack_nibbles(codes) if bits == NIBBLE else codes
    return octets.contiguous().view(torch.int32)


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Inverse of `pack_words`."""
    octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return unpack_nibbles(octets) if bits == NIBBLE else octets
