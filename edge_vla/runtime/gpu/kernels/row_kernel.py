"""What the row kernels share: adding partial sums, rounding where the model rounds, storing a row in its format."""

from __future__ import annotations

from torch import Tensor

from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, Rows


def block_of(width: int) -> int:
    """The power of two that holds a row."""
    return 1 << (width - 1).bit_length()


def warps_of(block: int) -> int:
    """Warps of a program, so that each thread holds a few loads' worth of the row."""
    return max(1, min(16, block // (32 * 8)))


def parts_of(added: Tensor) -> int:
    """How many partial sums (S, M, N) there are to add; a product (M, N) is one."""
    return added.shape[0] if added.dim() == 3 else 1


def stride_of(out: Rows) -> int:
    return out.codes.shape[1] if isinstance(out, Int8Rows) else out.shape[1]


def pointers(out: Rows) -> tuple[Tensor, Tensor]:
    """The arguments `out` and `scales` of `store_row`; 16-bit rows have no scales, and the kernel reads none."""
    return (out.codes, out.scales) if isinstance(out, Int8Rows) else (out, out)


def layout(out: Rows) -> dict[str, int]:
    """The compile-time arguments of `store_row`."""
    int8 = isinstance(out, Int8Rows)
    return {"STRIDE": stride_of(out), "INT8": int8, "FOR_INT4": isinstance(out, Int8Rows) and out.for_int4}


@jit
def sum_of(parts: tl.tensor, place: tl.tensor, mask: tl.tensor, stride: tl.tensor, PARTS: tl.constexpr) -> tl.tensor:
    """Values at `place` of PARTS tensors `stride` apart, added in order in float32."""
    total = tl.load(parts + place, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * stride + place, mask=mask, other=0.0).to(tl.float32)
    return total


@jit
def rounded(values: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """float32 as a 16-bit tensor would hold it."""
    return values.to(TYPE).to(tl.float32)


@jit
def store_row(
    out: tl.tensor,
    scales: tl.tensor,
    values: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    INT8: tl.constexpr,
    FOR_INT4: tl.constexpr,
) -> None:
    """A row of float32 values, zero beyond its width: in 16 bits, or in int8 as `weights.quantised` rounds it.

    An int8 row must be whole, for its scale is that of its largest value.
    """
    if INT8:
        largest = tl.max(tl.where(values == values, tl.abs(values), float("inf")), axis=0)
        inverse = tl.where(largest > 0, tl.math.div_rn(127.0, largest), 0.0)
        steps = values * inverse
        steps = tl.where(steps == steps, tl.minimum(tl.maximum(steps, -127.0), 127.0), 0.0)
        steps = (steps + 12582912.0) - 12582912.0  # 1.5 x 2^23 leaves no bits for a fraction: rounds half to even
        place = column
        if FOR_INT4:
            block, inside = column // 128, column % 128
            shift, near = inside // 32, inside % 32
            place = block * 128 + shift % 2 * 64 + near // 2 * 4 + near % 2 * 2 + shift // 2
        tl.store(out + row * STRIDE + place, steps.to(tl.int8), mask=column < STRIDE)
        tl.store(scales + row, tl.math.div_rn(largest, 127.0))
    else:
        tl.store(out + row * STRIDE + column, values.to(out.dtype.element_ty), mask=column < WIDTH)
