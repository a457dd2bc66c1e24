"""Every product against the truth in float64, at shapes that fit no tile; integer sums to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import Maker, judge
from benchmarks.gpu.kernel_checks.products import PRODUCTS, product
from edge_vla.quant import Scheme
from edge_vla.runtime.gpu.kernels import w4a8_gemm, w4a16_gemm, w4a16_gemv, w8a16_gemv
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.kernels.weights import quantised, repack_int4, repack_int8

TYPES = (torch.bfloat16, torch.float16)
few_examples = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", PRODUCTS)
@few_examples
@given(
    rows=st.integers(1, 70),
    outer=st.integers(1, 150),
    group=st.sampled_from((32, 64, 96, 128, 256)),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_product_is_as_exact_as_plain_pytorch(
    kind: str, dtype: torch.dtype, rows: int, outer: int, group: int, groups: int, seed: int, device: torch.device
) -> None:
    rows = 1 + rows % GEMV_ROWS if kind.endswith("gemv") else rows
    check = product(Maker.seeded(seed, device, dtype), kind, rows, outer, group * groups, group)
    verdict = judge(check)
    assert verdict.passed, verdict


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_int8_sums_of_an_int4_weight_are_exact(dtype: torch.dtype, group: int, device: torch.device) -> None:
    """Where nothing is rounded there is nothing to allow: small integers, powers of two, float32 out."""
    make = Maker.seeded(1, device, dtype)
    weight = repack_int4(make.packed(Scheme.INT4, 40, 384, group))
    weight.scales.copy_(2.0 ** torch.randint(-3, 3, weight.scales.shape, device=device))
    rows = quantised(make.rows(21, 384), for_int4=True)
    rows.scales.fill_(0.5)
    out = w4a8_gemm.kernel(rows, weight, torch.float32)
    assert torch.equal(out, w4a8_gemm.reference(rows, weight, torch.float32))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_rows_bits_depend_on_no_other_row(dtype: torch.dtype, device: torch.device) -> None:
    """Strict drafts need it: alone, at another place, or beside rows that are not even finite."""
    make = Maker.seeded(2, device, dtype)
    weight4, weight8 = (
        repack_int4(make.packed(Scheme.INT4, 70, 640, 128)),
        repack_int8(make.packed(Scheme.INT8, 70, 640)),
    )
    x = make.rows(GEMV_ROWS, 640)
    other = x.clone()
    other[[0, 3]] = x[[3, 0]]
    other[5] = torch.nan
    kernels: list[Callable[[Tensor], Tensor]] = [
        lambda rows: w4a16_gemv.kernel(rows, weight4),
        lambda rows: w8a16_gemv.kernel(rows, weight8),
    ]
    for gemv in kernels:
        whole, moved = gemv(x), gemv(other)
        assert torch.equal(gemv(x[:1]), whole[:, :1])
        assert torch.equal(gemv(x[2:5].contiguous()), whole[:, 2:5])
        assert torch.equal(moved[:, 3], whole[:, 0])
        assert torch.equal(moved[:, 4], whole[:, 4])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy tells of the overflow
def test_half_sums_stay_near_whole_ones(device: torch.device) -> None:
    """Half precision within a block: its own bar, ten times float16's; a sum beyond its range is not finite."""
    make = Maker.seeded(3, device, torch.float16)
    x, weight = make.rows(20, 512), repack_int4(make.packed(Scheme.INT4, 40, 512, 128))
    whole, half = w4a16_gemm.reference(x, weight), w4a16_gemm.kernel(x, weight, half_sums=True)
    assert (half.float() - whole.float()).abs().max() <= 10 * 2.0**-11 * whole.abs().max()
    weight.scales.fill_(64.0)
    assert not w4a16_gemm.kernel(x.abs() * 100, weight, half_sums=True).isfinite().all()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    make = Maker.seeded(4, device, torch.bfloat16)
    weight = repack_int4(make.packed(Scheme.INT4, 8, 128, 128))
    with pytest.raises(AssertionError, match="at most"):
        w4a16_gemv.kernel(make.rows(GEMV_ROWS + 1, 128), weight)
    with pytest.raises(AssertionError, match="inputs"):
        w4a16_gemv.kernel(make.rows(1, 96), weight)
    with pytest.raises(AssertionError, match="strides"):
        w4a16_gemv.kernel(make.rows(128, 2).T, weight)
    with pytest.raises(AssertionError, match="order"):
        w4a8_gemm.kernel(quantised(make.rows(1, 128)), weight, torch.bfloat16)
    with pytest.raises(AssertionError, match="float16"):
        w4a16_gemm.kernel(make.rows(1, 128), weight, half_sums=True)
