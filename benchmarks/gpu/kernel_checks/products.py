"""Checks of the product kernels, at any shape.

The truth is the float64 product of the same 16-bit or int8 rows and the weight that the codes stand for; beside int8
rows an int4 weight's codes are those of `weights.as_int8`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs
from edge_vla.quant import PackedWeight, Scheme, dequantise
from edge_vla.runtime.gpu.kernels import w4a8, w4a16, w8, w8a8, w16
from edge_vla.runtime.gpu.kernels.weights import (
    Int8Rows,
    Int8Weight,
    as_int8,
    in_input_order,
    quantised,
    repack_int4,
    repack_int8,
    summed,
)

MakeCheck: TypeAlias = Callable[[RandomInputs, int, int, int, int], KernelCheck]  # m, n, k, group


def product(inputs: RandomInputs, kind: str, m: int, n: int, k: int, group: int) -> KernelCheck:
    """`kind` is one of PRODUCTS; `group` is int4's, and int8 has none."""
    return PRODUCTS[kind](inputs, m, n, k, group)


def _w4a16_gemv(inputs: RandomInputs, m: int, n: int, k: int, group: int) -> KernelCheck:
    x, packed = inputs.rows(m, k), inputs.packed(Scheme.INT4, n, k, group)
    weight = repack_int4(packed)
    return _of_partial_sums(x, packed, lambda: w4a16.kernel_gemv(x, weight))


def _w8a16_gemv(inputs: RandomInputs, m: int, n: int, k: int, _: int) -> KernelCheck:
    x, packed = inputs.rows(m, k), inputs.packed(Scheme.INT8, n, k)
    weight = repack_int8(packed)
    return _of_partial_sums(x, packed, lambda: w8.kernel_a16_gemv(x, weight))


def _w16_gemv(inputs: RandomInputs, m: int, n: int, k: int, _: int) -> KernelCheck:
    x, weight = inputs.rows(m, k), inputs.rows(n, k)
    packed = PackedWeight(Scheme.BF16, (n, k), None, weight, None)
    return _of_partial_sums(x, packed, lambda: w16.kernel_gemv(x, weight))


def _w4a16_gemm(inputs: RandomInputs, m: int, n: int, k: int, group: int) -> KernelCheck:
    x, packed = inputs.rows(m, k), inputs.packed(Scheme.INT4, n, k, group)
    weight = repack_int4(packed)
    return _of_partial_sums(x, packed, lambda: w4a16.kernel_gemm(x, weight, reader="decoder"))


def _w8a16_gemm(inputs: RandomInputs, m: int, n: int, k: int, _: int) -> KernelCheck:
    x, packed = inputs.rows(m, k), inputs.packed(Scheme.INT8, n, k)
    weight = repack_int8(packed)
    return _of_partial_sums(x, packed, lambda: w8.kernel_a16_gemm(x, weight, reader="decoder"))


def _w8a8_gemm(inputs: RandomInputs, m: int, n: int, k: int, _: int) -> KernelCheck:
    x, packed = quantised(inputs.rows(m, k)), inputs.packed(Scheme.INT8, n, k)
    weight = repack_int8(packed)
    check = _of_integers(
        x,
        x.codes,
        weight,
        packed.bytes,
        lambda: w8a8.kernel(x, weight, inputs.dtype),
        lambda: w8a8.reference(x, weight, inputs.dtype),
    )
    return replace(check, launch=lambda: w8a8.kernel(x, weight, inputs.dtype, reader="decoder"))


def _w4a8_gemm(inputs: RandomInputs, m: int, n: int, k: int, group: int) -> KernelCheck:
    x, packed = quantised(inputs.rows(m, k), for_int4=True), inputs.packed(Scheme.INT4, n, k, group)
    weight = repack_int4(packed)
    check = _of_integers(
        x,
        in_input_order(x.codes, k),
        as_int8(weight),
        packed.bytes,
        lambda: w4a8.kernel(x, weight, inputs.dtype),
        lambda: w4a8.reference(x, weight, inputs.dtype),
    )
    return replace(check, launch=lambda: w4a8.kernel(x, weight, inputs.dtype, reader="decoder"))


def _of_partial_sums(x: Tensor, packed: PackedWeight, kernel: Callable[[], Tensor]) -> KernelCheck:
    """The next kernel adds the partial sums, so adding them is not timed."""
    return replace(_of_rows(x, packed, lambda: summed(kernel(), x.dtype)), launch=kernel)


def _of_rows(x: Tensor, packed: PackedWeight, kernel: Callable[[], Tensor]) -> KernelCheck:
    (m, k), n = x.shape, packed.shape[0]
    return KernelCheck(
        lambda: [kernel()],
        lambda: [F.linear(x, dequantise(packed, x.dtype))],
        lambda: [x.double() @ dequantise(packed).double().T],
        packed.bytes + x.nbytes + m * n * x.element_size(),
        2 * m * n * k,
    )


def _of_integers(
    x: Int8Rows,
    codes: Tensor,
    weight: Int8Weight,
    weight_bytes: int,
    kernel: Callable[[], Tensor],
    reference: Callable[[], Tensor],
) -> KernelCheck:
    """`codes` of the rows in input order. Sums are exact on both sides."""
    (m, k), n = codes.shape, weight.shape[0]

    def truth() -> Tensor:
        return (codes.double() @ weight.codes.double().T) * x.scales.double()[:, None] * weight.scales.double()

    return KernelCheck(
        lambda: [kernel()],
        lambda: [reference()],
        lambda: [truth()],
        weight_bytes + codes.nbytes + m * n * 2,
        2 * m * n * k,
        exact=True,
    )


PRODUCTS: Final[Mapping[str, MakeCheck]] = {
    "w4a16_gemv": _w4a16_gemv,
    "w8a16_gemv": _w8a16_gemv,
    "w16_gemv": _w16_gemv,
    "w4a16_gemm": _w4a16_gemm,
    "w8a16_gemm": _w8a16_gemm,
    "w8a8_gemm": _w8a8_gemm,
    "w4a8_gemm": _w4a8_gemm,
}
