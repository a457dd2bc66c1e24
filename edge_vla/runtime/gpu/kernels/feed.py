"""Chosen bins to where the host and the next pass look for them, and their embeddings to the next pass's rows."""

from __future__ import annotations

from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import check_rows, jit, overlap, tl, wait_for_inputs
from edge_vla.runtime.gpu.kernels.row_kernel import block_of, warps_of


def reference(
    bins: Tensor,
    margins: Tensor,
    first: int,
    fed: int,
    embeddings: Tensor,
    given: Tensor,
    rows: Tensor,
    outputs: Tensor,
) -> None:
    """bins (n,) int32 and margins (n,) float32 of the dimensions from `first` on -> outputs (2, dims) float32.

    Those of dimensions below `fed` go to `given` (.., int32), and their rows of `embeddings` (bins, width) to `rows`.
    """
    outputs[0, first : first + bins.shape[0]] = bins
    outputs[1, first : first + bins.shape[0]] = margins
    count = max(0, min(bins.shape[0], fed - first))
    given[first : first + count] = bins[:count]
    rows[first : first + count] = embeddings[bins[:count]]


def kernel(
    bins: Tensor,
    margins: Tensor,
    first: int,
    fed: int,
    embeddings: Tensor,
    given: Tensor,
    rows: Tensor,
    outputs: Tensor,
) -> None:
    """What `reference` does, in one launch."""
    check_rows(bins, margins, embeddings, given, rows, outputs)
    width = embeddings.shape[1]
    block = block_of(width)
    _feed[(bins.shape[0],)](
        bins,
        margins,
        embeddings,
        given,
        rows,
        outputs,
        outputs.shape[1],
        FIRST=first,
        FED=fed,
        WIDTH=width,
        BLOCK=block,
        num_warps=warps_of(block),
        **overlap(bins.device),
    )


@jit
def _feed(
    bins: tl.tensor,
    margins: tl.tensor,
    embeddings: tl.tensor,
    given: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    dims: tl.tensor,
    FIRST: tl.constexpr,
    FED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    dim = FIRST + tl.program_id(0)
    column = tl.arange(0, BLOCK)
    wait_for_inputs(EARLY)
    chosen = tl.load(bins + tl.program_id(0))
    tl.store(outputs + dim, chosen.to(tl.float32))
    tl.store(outputs + dims + dim, tl.load(margins + tl.program_id(0)))
    if dim < FED:
        tl.store(given + dim, chosen)
        row = tl.load(embeddings + chosen * WIDTH + column, mask=column < WIDTH)
        tl.store(rows + dim * WIDTH + column, row, mask=column < WIDTH)
