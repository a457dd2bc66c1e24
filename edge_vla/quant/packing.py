"""Small codes in whole bytes, low bits first. Knows nothing of what a code stands for."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

BYTE: Final = 8  # bits; narrow codes are packed in eights, so that eight fill whole bytes


def pack_nibbles(codes: Tensor) -> Tensor:
    """(N, K) uint8 in 0..15 -> (N, K/2) uint8, the even column in the low nibble."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """(N, K) uint8 below 2**bits -> (N, bits K/8) uint8: eight codes to `bits` bytes, the lowest bits first."""
    outer, inner = codes.shape
    eights = codes.view(outer, inner // BYTE, BYTE).to(torch.int32)
    word = (eights << (bits * torch.arange(BYTE))).sum(dim=2)
    return ((word[..., None] >> (BYTE * torch.arange(bits))) & 0xFF).to(torch.uint8).view(outer, -1)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack_bits`."""
    outer, size = packed.shape
    word = (packed.view(outer, size // bits, bits).to(torch.int32) << (BYTE * torch.arange(bits))).sum(dim=2)
    codes: Tensor = ((word[..., None] >> (bits * torch.arange(BYTE))) & (2**bits - 1)).to(torch.uint8)
    return codes.view(outer, -1)
