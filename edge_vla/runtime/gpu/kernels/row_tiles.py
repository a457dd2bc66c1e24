"""Up to three tiles of rows in one program of a GEMM, so that each weight is loaded and converted once for all of them.

288 rows are 128 + 128 + 32, not three times 128. A tile without rows has size 0 and compiles to nothing.
"""

from __future__ import annotations

from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.row_kernel import rounded


@jit
def load_rows(
    x: tl.tensor, row: tl.tensor, place: tl.tensor, m: tl.tensor, k: tl.tensor, EVEN_K: tl.constexpr
) -> tl.tensor:
    """Inputs `place` of rows `row` of x (m, k), as the right operand of a product (K, M); zero where there is none."""
    mask = (row < m)[None, :] if EVEN_K else (row < m)[None, :] & (place < k)[:, None]
    return tl.load(x + row[None, :] * k + place[:, None], mask=mask, other=0)


@jit
def store_rows(
    out: tl.tensor,
    total: tl.tensor,
    row: tl.tensor,
    output: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    ROW_SCALES: tl.constexpr,
    row_scales: tl.tensor,
) -> None:
    """Sums (N, M) float32 to out (m, n), times the scale of each row where rows have scales."""
    if ROW_SCALES:
        total *= tl.load(row_scales + row, mask=row < m, other=0.0)[None, :]
    mask = (output < n)[:, None] & (row < m)[None, :]
    tl.store(out + row[None, :] * n + output[:, None], total.to(out.dtype.element_ty), mask=mask)


@jit
def with_bias(total: tl.tensor, bias: tl.tensor, output: tl.tensor, n: tl.tensor) -> tl.tensor:
    """Sums (N, M) as they are, or rounded to the bias's type with the bias (N,) added."""
    if bias is not None:
        added = tl.load(bias + output, mask=output < n, other=0.0).to(tl.float32)
        total = rounded(total, bias.dtype.element_ty) + added[:, None]
    return total


@jit
def store_int8_rows(
    out: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    row: tl.tensor,
    output: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    row_scales: tl.tensor,
    bias: tl.tensor,
) -> None:
    """Integer sums (N, M), times the row's scale, then times the output's, as the reference rounds."""
    row_scale = tl.load(row_scales + row, mask=row < m, other=0.0)[None, :]
    total = with_bias(sums.to(tl.float32) * row_scale * scale, bias, output, n)
    store_rows(out, total, row, output, m, n, False, row_scales)
