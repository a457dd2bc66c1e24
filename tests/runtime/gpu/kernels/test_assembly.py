"""Inline assembly, run instruction by instruction, against plain arithmetic: no interpreter and no CPU test runs it."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.runtime.gpu.kernels.nibbles import assembly, byte_assembly
from edge_vla.runtime.gpu.kernels.tiles import Chip, ahead_of
from edge_vla.runtime.gpu.kernels.weights import MOST_STEPS, STEPS
from tests.runtime.gpu.kernels.ptx import run

CPU = torch.device("cpu")
HOPPER = Chip((9, 0), 132, 227 * 1024)
steps = st.integers(0, MOST_STEPS)


@given(word=st.integers(0, 2**32 - 1), even=steps, odd=steps)
@pytest.mark.parametrize("shift", [0, 4])
def test_four_nibbles_become_int8(shift: int, word: int, even: int, odd: int) -> None:
    """Whatever stands beside them in the word."""
    with ahead_of(HOPPER):
        code = byte_assembly(shift, CPU)
    assert code is not None
    got = run(code, word, 2 * even, 2 * odd, 2 * even, 2 * odd)
    levels = [(word >> 8 * byte + shift & 15) - 8 for byte in range(4)]
    rounded = [(level * step + STEPS // 2) // STEPS for level, step in zip(levels, (even, odd, even, odd), strict=True)]
    assert list(struct.unpack("<4b", struct.pack("<I", got))) == rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_two_nibbles_become_16_bits(dtype: torch.dtype) -> None:
    with ahead_of(HOPPER):
        code = assembly(dtype, CPU)
    assert code is not None
    for low in range(16):
        for high in range(16):
            word = low | high << 16 | 0xABC0DEF0  # the other nibbles change nothing
            pair = torch.tensor([run(code, word)], dtype=torch.int64).to(torch.int32).view(dtype)
            assert pair.tolist() == [low - 8, high - 8]
