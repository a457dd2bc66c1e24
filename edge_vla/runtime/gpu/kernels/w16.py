"""Up to eight rows times a 16-bit weight: the weight is read once, in lines, and K is split over programs.

The next kernel adds the partial sums on its way; a library's product adds them in a launch of its own. More rows go
through the library. A row's bits depend neither on its neighbours nor on their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, Tile, gemv_tile, split_k


def reference_gemv(x: Tensor, weight: Tensor) -> Tensor:
    """x (M <= 8, K) and weight (N, K), both of one 16-bit type -> (1, M, N) float32."""
    return F.linear(x.float(), weight.float())[None]


def kernel_gemv(x: Tensor, weight: Tensor, tile: Tile | None = None) -> Tensor:
    """x (M <= 8, K) and weight (N, K) -> (S, M, N) float32, whose sum over S, in order, is the product."""
    (m, k), n = x.shape, weight.shape[0]
    check_rows(x, weight)
    assert m <= GEMV_ROWS, f"{m} rows: a gemv kernel takes at most {GEMV_ROWS}"
    assert k == weight.shape[1], f"{k} inputs for a weight {tuple(weight.shape)}"
    chip = Chip.of(x.device)
    tile = tile or gemv_tile(chip, "w16", n, k)
    blocks = -(-k // tile.block_k)
    splits, blocks_each = split_k(chip, tile, n, blocks)
    out = torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    _w16_gemv[(-(-n // tile.block_n), splits)](
        x,
        weight,
        out,
        m,
        n,
        k,
        blocks,
        blocks_each,
        EVEN_K=k % tile.block_k == 0,
        BLOCK_K=tile.block_k,
        **tile.launch(),
        **overlap(x.device),
    )
    return out


@jit
def _w16_gemv(
    x: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    w16_part(
        x, weights, out, tl.program_id(0), tl.program_id(1), m, n, k, blocks, blocks_each,
        EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K, EARLY,
    )  # fmt: skip


@jit
def w16_part(
    x: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    column: tl.tensor,
    split: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    blocks_each: tl.tensor,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """One program's share of a gemv: outputs of tile `column`, inputs of split `split`."""
    output = column * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    first = split * blocks_each
    last = tl.minimum(first + blocks_each, blocks)
    n_mask = (output < n)[:, None]
    m_mask = (row < m)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    wait_for_inputs(EARLY)
    for block in range(first, last):
        place = block * BLOCK_K + tl.arange(0, BLOCK_K)
        weight_mask = n_mask if EVEN_K else n_mask & (place < k)[None, :]
        row_mask = m_mask if EVEN_K else m_mask & (place < k)[:, None]
        weight = tl.load(weights + output[:, None] * k + place[None, :], mask=weight_mask, other=0.0)
        values = tl.load(x + row[None, :] * k + place[:, None], mask=row_mask, other=0.0)
        acc = tl.dot(weight, values, acc)
    place = (split * m + row[None, :]) * n + output[:, None]
    tl.store(out + place, acc, mask=n_mask & m_mask)
