"""The next action id without leaving the device: logits of the action ids, the best bin, its margin and embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.gpu.kernels import w16
from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, rounded, sum_of
from edge_vla.runtime.gpu.kernels.tiles import Chip, head_tile

WARPS = 4


def reference(
    hidden: Tensor,
    head: Tensor,
    first: int,
    fed: int,
    embeddings: Tensor,
    given: Tensor,
    rows: Tensor,
    outputs: Tensor,
) -> None:
    """hidden (M <= 8, D) and head (bins, D) -> what is chosen for the dimensions from `first` on, of M rows.

    outputs (2, dims) float32 get the lowest index among the best logits, and the best minus the second-best logit, NaN
    where a logit is not finite. Indices of dimensions below `fed` also go to `given` (.., int32), and their rows of
    `embeddings` (bins, width) to `rows`. hidden, head and embeddings are of one 16-bit type: logits are rounded to it.
    """
    logits = F.linear(hidden.float(), head.float()).to(hidden.dtype).float()
    best = logits.amax(dim=1, keepdim=True)
    order = torch.arange(logits.shape[1], device=logits.device)
    bins = torch.where(logits == best, order, logits.shape[1]).amin(dim=1).clamp(max=logits.shape[1] - 1)
    second = logits.masked_fill(order == bins[:, None], -torch.inf).amax(dim=1)
    outputs[0, first : first + bins.shape[0]] = bins
    outputs[1, first : first + bins.shape[0]] = torch.where(
        logits.isfinite().all(dim=1), best[:, 0] - second, torch.nan
    )
    count = max(0, min(bins.shape[0], fed - first))
    given[first : first + count] = bins[:count]
    rows[first : first + count] = embeddings[bins[:count]]


def kernel(
    hidden: Tensor,
    head: Tensor,
    first: int,
    fed: int,
    embeddings: Tensor,
    given: Tensor,
    rows: Tensor,
    outputs: Tensor,
) -> None:
    """What `reference` does, in two launches."""
    check_rows(embeddings, given, rows, outputs)
    assert embeddings.dtype == hidden.dtype, f"{embeddings.dtype} embeddings of {hidden.dtype} rows"
    (m, n), width = (hidden.shape[0], head.shape[0]), embeddings.shape[1]
    logits = w16.kernel_gemv(hidden, head, head_tile(Chip.of(hidden.device), n))
    _choose[(m,)](
        logits,
        embeddings,
        given,
        rows,
        outputs,
        m,
        outputs.shape[1],
        FIRST=first,
        FED=fed,
        SPLITS=logits.shape[0],
        COUNT=n,
        BLOCK=block_of(n),
        WIDTH=width,
        COLUMNS=block_of(width),
        num_warps=WARPS,
        **overlap(hidden.device),
    )


@jit
def _choose(
    logits: tl.tensor,
    embeddings: tl.tensor,
    given: tl.tensor,
    to: tl.tensor,
    outputs: tl.tensor,
    rows: tl.tensor,
    dims: tl.tensor,
    FIRST: tl.constexpr,
    FED: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row, dim = tl.program_id(0), FIRST + tl.program_id(0)
    order = tl.arange(0, BLOCK)
    mask = order < COUNT
    wait_for_inputs(EARLY)
    values = rounded(sum_of(logits, row * COUNT + order, mask, rows * COUNT, SPLITS), embeddings.dtype.element_ty)
    wrong = tl.sum(tl.where(mask & ~(tl.abs(values) < float("inf")), 1, 0), axis=0)
    values = tl.where(mask, values, -float("inf"))
    best = tl.max(values, axis=0)
    chosen = tl.minimum(tl.min(tl.where(values == best, order, COUNT), axis=0), COUNT - 1)
    second = tl.max(tl.where(order == chosen, -float("inf"), values), axis=0)
    tl.store(outputs + dim, chosen.to(tl.float32))
    tl.store(outputs + dims + dim, tl.where(wrong > 0, float("nan"), best - second))
    if dim < FED:
        column = tl.arange(0, COLUMNS)
        tl.store(given + dim, chosen)
        embedding = tl.load(embeddings + chosen * WIDTH + column, mask=column < WIDTH)
        tl.store(to + dim * WIDTH + column, embedding, mask=column < WIDTH)
