"""Trials of the products, named by their files, at any shape.

Truths are the float64 product of the same 16-bit or int8 rows and the weight that the codes stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, Maker
from edge_vla.quant import PackedWeight, Scheme, dequantise
from edge_vla.runtime.gpu.kernels import w4a8_gemm, w4a16_gemm, w4a16_gemv, w8a8_gemm, w8a16_gemm, w8a16_gemv
from edge_vla.runtime.gpu.kernels.weights import in_input_order, quantised, repack_int4, repack_int8, summed

Product: TypeAlias = Callable[[Maker, int, int, int, int], KernelCheck]  # rows, outputs, inputs, group


def product(make: Maker, kind: str, rows: int, outer: int, inner: int, group: int) -> KernelCheck:
    """`kind` is one of PRODUCTS; `group` is int4's, and int8 has none."""
    return PRODUCTS[kind](make, rows, outer, inner, group)


def _w4a16_gemv(make: Maker, rows: int, outer: int, inner: int, group: int) -> KernelCheck:
    x, packed = make.rows(rows, inner), make.packed(Scheme.INT4, outer, inner, group)
    weight = repack_int4(packed)
    check = _of_rows(x, packed, lambda: summed(w4a16_gemv.kernel(x, weight), x.dtype))
    return replace(check, launch=lambda: w4a16_gemv.kernel(x, weight))  # the next kernel adds up the parts


def _w8a16_gemv(make: Maker, rows: int, outer: int, inner: int, _: int) -> KernelCheck:
    x, packed = make.rows(rows, inner), make.packed(Scheme.INT8, outer, inner)
    weight = repack_int8(packed)
    check = _of_rows(x, packed, lambda: summed(w8a16_gemv.kernel(x, weight), x.dtype))
    return replace(check, launch=lambda: w8a16_gemv.kernel(x, weight))  # the next kernel adds up the parts


def _w4a16_gemm(make: Maker, rows: int, outer: int, inner: int, group: int) -> KernelCheck:
    x, packed = make.rows(rows, inner), make.packed(Scheme.INT4, outer, inner, group)
    weight = repack_int4(packed)
    return _of_rows(x, packed, lambda: w4a16_gemm.kernel(x, weight))


def _w8a16_gemm(make: Maker, rows: int, outer: int, inner: int, _: int) -> KernelCheck:
    x, packed = make.rows(rows, inner), make.packed(Scheme.INT8, outer, inner)
    weight = repack_int8(packed)
    return _of_rows(x, packed, lambda: w8a16_gemm.kernel(x, weight))


def _w8a8_gemm(make: Maker, rows: int, outer: int, inner: int, _: int) -> KernelCheck:
    x, packed = quantised(make.rows(rows, inner)), make.packed(Scheme.INT8, outer, inner)
    weight = repack_int8(packed)
    return _of_integers(
        x.codes,
        x.scales,
        packed,
        lambda: w8a8_gemm.kernel(x, weight, make.dtype),
        lambda: w8a8_gemm.reference(x, weight, make.dtype),
        exact=True,
    )


def _w4a8_gemm(make: Maker, rows: int, outer: int, inner: int, group: int) -> KernelCheck:
    x, packed = quantised(make.rows(rows, inner), for_int4=True), make.packed(Scheme.INT4, outer, inner, group)
    weight = repack_int4(packed)
    return _of_integers(
        in_input_order(x.codes, inner),
        x.scales,
        packed,
        lambda: w4a8_gemm.kernel(x, weight, make.dtype),
        lambda: w4a8_gemm.reference(x, weight, make.dtype),
        exact=False,  # a chip adds up groups with one rounding where PyTorch has two
    )


def _of_rows(x: Tensor, packed: PackedWeight, kernel: Callable[[], Tensor]) -> KernelCheck:
    (rows, inner), outer = x.shape, packed.shape[0]
    return KernelCheck(
        lambda: [kernel()],
        lambda: [F.linear(x, dequantise(packed, x.dtype))],
        lambda: [x.double() @ dequantise(packed).double().T],
        packed.bytes + x.nbytes + rows * outer * x.element_size(),
        2 * rows * outer * inner,
    )


def _of_integers(
    codes: Tensor,
    scales: Tensor,
    packed: PackedWeight,
    kernel: Callable[[], Tensor],
    reference: Callable[[], Tensor],
    *,
    exact: bool,
) -> KernelCheck:
    (rows, inner), outer = codes.shape, packed.shape[0]
    return KernelCheck(
        lambda: [kernel()],
        lambda: [reference()],
        lambda: [codes.double() * scales.double()[:, None] @ dequantise(packed).double().T],
        packed.bytes + codes.nbytes + rows * outer * 2,
        2 * rows * outer * inner,
        exact,
    )


PRODUCTS: Final[Mapping[str, Product]] = {
    "w4a16_gemv": _w4a16_gemv,
    "w8a16_gemv": _w8a16_gemv,
    "w4a16_gemm": _w4a16_gemm,
    "w8a16_gemm": _w8a16_gemm,
    "w8a8_gemm": _w8a8_gemm,
    "w4a8_gemm": _w4a8_gemm,
}
