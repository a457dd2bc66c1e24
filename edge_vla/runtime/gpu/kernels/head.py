"""The next token without leaving the device: logits of the action ids, the best of them, its lead, its embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, tl
from edge_vla.runtime.gpu.kernels.rounding import block_of, rounded, sum_of, warps_of
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Chip, head_tile, splits


@dataclass(frozen=True, slots=True)
class Choice:
    """`margins`: the best logit's lead over the second; NaN where a logit of the row is not finite."""

    bins: Tensor  # (M,) int32: the lowest index among the best
    margins: Tensor  # (M,) float32
    embedded: Tensor  # (M, D): the chosen rows' embeddings


def reference(hidden: Tensor, head: Tensor, embeddings: Tensor) -> Choice:
    """hidden (M <= 8, D), head and embeddings (bins, D), all of one 16-bit type. Logits are rounded to it first."""
    logits = F.linear(hidden.float(), head.float()).to(hidden.dtype).float()
    best = logits.amax(dim=1, keepdim=True)
    order = torch.arange(logits.shape[1], device=logits.device)
    bins = torch.where(logits == best, order, logits.shape[1]).amin(dim=1).clamp(max=logits.shape[1] - 1)
    second = logits.masked_fill(order == bins[:, None], -torch.inf).amax(dim=1)
    margins = torch.where(logits.isfinite().all(dim=1), best[:, 0] - second, torch.nan)
    return Choice(bins.to(torch.int32), margins, embeddings[bins])


def kernel(hidden: Tensor, head: Tensor, embeddings: Tensor) -> Choice:
    """What `reference` computes, in two launches."""
    rows, width = hidden.shape
    count, device = head.shape[0], hidden.device
    check_rows(hidden, head, embeddings)
    assert rows <= GEMV_ROWS, f"{rows} rows: a gemv kernel takes at most {GEMV_ROWS}"
    chip = Chip.of(device)
    tile = head_tile(chip)
    blocks = -(-width // tile.inner)
    parts, each = splits(chip, tile, count, blocks)
    logits = torch.empty(parts, rows, count, dtype=torch.float32, device=device)
    _logits[(-(-count // tile.outputs), parts)](
        hidden,
        head,
        logits,
        rows,
        count,
        width,
        blocks,
        each,
        OUTPUTS=tile.outputs,
        ROWS=tile.rows,
        INNER=tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    bins = torch.empty(rows, dtype=torch.int32, device=device)
    margins = torch.empty(rows, dtype=torch.float32, device=device)
    embedded = torch.empty_like(hidden)
    block = block_of(width)
    _choose[(rows,)](
        logits,
        embeddings,
        bins,
        margins,
        embedded,
        PARTS=parts,
        ROWS=rows,
        COUNT=count,
        WIDTH=width,
        BLOCK=block_of(count),
        WIDE=block,
        num_warps=warps_of(block),
    )
    return Choice(bins, margins, embedded)


@jit
def _logits(
    hidden: tl.tensor,
    head: tl.tensor,
    logits: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    each: tl.tensor,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    first = tl.program_id(1) * each
    real = output < count
    asks = row < rows
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for block in range(first, tl.minimum(first + each, blocks)):
        place = block * INNER + tl.arange(0, INNER)
        inside = place < width
        weight = tl.load(
            head + output[:, None] * width + place[None, :], mask=real[:, None] & inside[None, :], other=0.0
        )
        values = tl.load(
            hidden + row[None, :] * width + place[:, None], mask=asks[None, :] & inside[:, None], other=0.0
        )
        total = tl.dot(weight, values, total)
    place = (tl.program_id(1) * rows + row[None, :]) * count + output[:, None]
    tl.store(logits + place, total, mask=real[:, None] & asks[None, :])


@jit
def _choose(
    logits: tl.tensor,
    embeddings: tl.tensor,
    bins: tl.tensor,
    margins: tl.tensor,
    embedded: tl.tensor,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    order = tl.arange(0, BLOCK)
    real = order < COUNT
    values = rounded(sum_of(logits, row * COUNT + order, real, ROWS * COUNT, PARTS), embedded.dtype.element_ty)
    wrong = tl.sum(tl.where(real & ~(tl.abs(values) < float("inf")), 1, 0), axis=0)
    values = tl.where(real, values, -float("inf"))
    best = tl.max(values, axis=0)
    chosen = tl.minimum(tl.min(tl.where(values == best, order, COUNT), axis=0), COUNT - 1)
    second = tl.max(tl.where(order == chosen, -float("inf"), values), axis=0)
    tl.store(bins + row, chosen)
    tl.store(margins + row, tl.where(wrong > 0, float("nan"), best - second))
    column = tl.arange(0, WIDE)
    inside = column < WIDTH
    tl.store(embedded + row * WIDTH + column, tl.load(embeddings + chosen * WIDTH + column, mask=inside), mask=inside)
