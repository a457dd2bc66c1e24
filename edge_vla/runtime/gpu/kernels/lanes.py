"""Operands of an int4 product of few rows, in the order in which the lanes of a warp hold them.

Any order of inputs serves that rows and weights share, and any order of outputs that the result's places follow. Here
both are such that a lane reads what it multiplies in few and wide loads, and rows never pass through shared memory.
A tensor-core product of 16 outputs and 32 inputs gives lane 4l + t the outputs l and l + 8, and of the inputs the pairs
2t, 2t + 1, 8 + 2t and 9 + 2t. So place 16T + 8h + l of the outputs is for output 16T + 2l + h of the tile, and place
8i + 2t + s of the pairs for word 4t + 2s + i of a line: four neighbouring words, eight neighbouring inputs of a row
(16 bytes each), scales of two neighbouring outputs. Another order is right with any compiler, and dearer.
"""

from __future__ import annotations

from edge_vla.runtime.gpu.kernels.language import jit, tl


@jit
def outputs_of(BLOCK_N: tl.constexpr) -> tl.tensor:
    """(BLOCK_N,): the output of the tile that each place is for."""
    tile = tl.arange(0, BLOCK_N // 16)[:, None, None] * 16
    return tl.reshape(tile + tl.arange(0, 2)[None, :, None] + 2 * tl.arange(0, 8)[None, None, :], (BLOCK_N,))


@jit
def words_of(lines: tl.tensor) -> tl.tensor:
    """Lines (N, 16) as they lie in memory -> words (N, 16) in the order of places."""
    split = tl.reshape(lines, (lines.shape[0] // 16, 8, 2, 4, 2, 2))
    return tl.reshape(tl.permute(split, (0, 2, 1, 5, 3, 4)), (lines.shape[0], 16))


@jit
def quads_of(
    x: tl.tensor, block: tl.tensor, m: tl.tensor, k: tl.tensor, BLOCK_M: tl.constexpr, EVEN_K: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of a block, for each of its four shifts: (BLOCK_M, 8) int64, four inputs each. Rows beyond m are the last."""
    row = tl.minimum(tl.arange(0, BLOCK_M), m - 1)[:, None]
    # K is a multiple of 32: a shift has all of its inputs or none.
    place = x.to(tl.pointer_type(tl.int64), bitcast=True) + block * 32 + row * (k // 4) + tl.arange(0, 8)[None, :]
    if EVEN_K:
        return tl.load(place), tl.load(place + 8), tl.load(place + 16), tl.load(place + 24)
    left = tl.full([BLOCK_M, 8], 0, tl.int32) + k // 32 - 4 * block
    return (
        tl.load(place, mask=left > 0, other=0),
        tl.load(place + 8, mask=left > 1, other=0),
        tl.load(place + 16, mask=left > 2, other=0),
        tl.load(place + 24, mask=left > 3, other=0),
    )


@jit
def inputs_of(quads: tl.tensor, TYPE: tl.constexpr, ASSEMBLY: tl.constexpr) -> tl.tensor:
    """One shift's quads -> its inputs (32, BLOCK_M), in the order of places."""
    if ASSEMBLY is not None:  # halves that the compiler need not know to be halves: it would shift each out of its own
        low, high = tl.inline_asm_elementwise(
            "mov.b64 {$0, $1}, $2;", "=r,=r,l", [quads], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
    else:
        low, high = quads.to(tl.int32), (quads >> 32).to(tl.int32)
    pairs = tl.join(low, high)
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    split = tl.reshape(halves, (quads.shape[0], 4, 2, 2, 2))
    return tl.reshape(tl.permute(split, (3, 1, 2, 4, 0)), (32, quads.shape[0])).to(TYPE, bitcast=True)


@jit
def scale_pairs(
    scales: tl.tensor, place: tl.tensor, column: tl.tensor, n: tl.tensor, BLOCK_N: tl.constexpr, EVEN_N: tl.constexpr
) -> tl.tensor:
    """(BLOCK_N // 16, 8) int32, two float16 each: the scales from `place` on of a tile of outputs."""
    pair = tl.arange(0, BLOCK_N // 16)[:, None] * 8 + tl.arange(0, 8)[None, :]
    place += column * BLOCK_N
    if EVEN_N:
        return tl.load(scales.to(tl.pointer_type(tl.int32), bitcast=True) + (place >> 1) + pair)
    even = column * BLOCK_N + 2 * pair
    low = tl.load(scales + place + 2 * pair, mask=even < n, other=0.0)
    high = tl.load(scales + place + 2 * pair + 1, mask=even + 1 < n, other=0.0)
    bits = low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return bits | high.to(tl.int16, bitcast=True).to(tl.int32) << 16


@jit
def scale_sums(sums: tl.tensor, part: tl.tensor, pairs: tl.tensor) -> tl.tensor:
    """sums + part (BLOCK_N, M) times the scales of its outputs, rounded once."""
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16)).to(tl.float16, bitcast=True)
    scale = tl.reshape(tl.permute(halves, (0, 2, 1)), (part.shape[0],)).to(tl.float32)
    return tl.fma(part, tl.broadcast_to(scale[:, None], part.shape), sums)
