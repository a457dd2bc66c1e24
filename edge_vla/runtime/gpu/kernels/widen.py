"""Int8 codes to 16-bit operands of tensor cores: four in five instructions, none of which is a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import torch

from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.tiles import Chip, compiles

# A weight is made as its code divided by this, and its output's scale multiplied by it: powers of two round nothing.
UNIT: Final = 64

# A byte 128 + code, below this upper byte, is a 16-bit number: an origin, plus the byte times a step. Eight bits are
# one more than bfloat16's mantissa has, but its subnormal numbers and the next 128 share one step.
BYTES: Final[Mapping[torch.dtype, tuple[int, float, float]]] = {
    torch.bfloat16: (0x00, 0.0, 2.0**-133),
    torch.float16: (0x64, 1024.0, 1.0),
}


def widening(dtype: torch.dtype, device: torch.device) -> tuple[int, str]:
    """UNIT, and the assembly for four codes at a time: empty where Triton interprets."""
    return UNIT, _assembly(dtype) if compiles(device) else ""


@cache
def _assembly(dtype: torch.dtype) -> str:
    upper, origin, step = BYTES[dtype]
    kind = "bf16x2" if dtype == torch.bfloat16 else "f16x2"
    factor = 1 / (step * UNIT)
    return (
        "{ .reg .b32 codes, upper, factor, less, low, high; "
        f"mov.b32 upper, {upper * 0x01010101:#x}; "
        f"mov.b32 factor, {_twice(factor, dtype):#x}; mov.b32 less, {_twice(-128 / UNIT - origin * factor, dtype):#x}; "
        "xor.b32 codes, $2, 0x80808080; "
        "prmt.b32 low, codes, upper, 0x4140; prmt.b32 high, codes, upper, 0x4342; "  # bytes 0 and 1, 2 and 3
        f"fma.rn.{kind} $0, low, factor, less; fma.rn.{kind} $1, high, factor, less; }}"
    )


def _twice(value: float, dtype: torch.dtype) -> int:
    """The bits of a pair."""
    pair = torch.tensor([value] * 2, dtype=dtype)
    assert float(pair[0]) == value, f"{value} is no {dtype}"
    return int(pair.view(torch.int32)) & 0xFFFFFFFF


def converts_ahead(chip: Chip, inputs: int) -> bool:
    """Whether a GEMM widens words of the next block: where tensor cores take a converted weight from shared memory."""
    return chip.capability[0] == 9 and inputs % 4 == 0


# WIDENING is what `widening` returned.
@jit
def widened(codes: tl.tensor, TYPE: tl.constexpr, WIDENING: tl.constexpr) -> tl.tensor:
    """codes int8, divided by UNIT, in the 16-bit TYPE: exactly."""
    if WIDENING[1] != "":
        bits = tl.inline_asm_elementwise(WIDENING[1], "=r,=r,r", [codes], dtype=tl.int16, is_pure=True, pack=4)
        weights = bits.to(TYPE, bitcast=True)
    else:
        weights = codes.to(TYPE) * (1 / WIDENING[0])
    return weights


@jit
def widened_words(words: tl.tensor, TYPE: tl.constexpr, WIDENING: tl.constexpr) -> tl.tensor:
    """words (N, W) int32, four codes each -> (N, 4 W) in input order, as `widened`."""
    if WIDENING[1] != "":
        low, high = tl.inline_asm_elementwise(
            WIDENING[1], "=r,=r,r", [words], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
        pairs = tl.join(low, high)
        halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
        weights = halves.reshape(words.shape[0], 4 * words.shape[1]).to(TYPE, bitcast=True)
    else:
        even = tl.join(words.to(tl.int8), (words >> 16).to(tl.int8))
        odd = tl.join((words >> 8).to(tl.int8), (words >> 24).to(tl.int8))
        weights = widened(tl.join(even, odd).reshape(words.shape[0], 4 * words.shape[1]), TYPE, WIDENING)
    return weights


@jit
def load_codes(
    codes: tl.tensor, output: tl.tensor, place: tl.tensor, n: tl.tensor, k: tl.tensor, EVEN_K: tl.constexpr
) -> tl.tensor:
    """Codes (N, K) of these outputs and inputs, zero where there is none."""
    mask = (output < n)[:, None] if EVEN_K else (output < n)[:, None] & (place < k)[None, :]
    return tl.load(codes + output[:, None] * k + place[None, :], mask=mask, other=0)


@jit
def load_words(
    codes: tl.tensor,
    output: tl.tensor,
    block: tl.tensor,
    last: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Codes of a block before `last`, four to a word (N, BLOCK_K // 4): bytes would take a register each."""
    place = tl.minimum(block, last - 1) * (BLOCK_K // 4) + tl.arange(0, BLOCK_K // 4)
    return load_codes(codes.to(tl.pointer_type(tl.int32), bitcast=True), output, place, n, k // 4, EVEN_K)
