"""Every product against the truth in float64, at shapes that fit no tile; integer sums to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import RandomInputs, evaluate
from benchmarks.gpu.kernel_checks.products import PRODUCTS, product
from edge_vla.quant import Scheme
from edge_vla.runtime.gpu.kernels import w4a8, w4a16, w8, w8a8
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS, Tile
from edge_vla.runtime.gpu.kernels.weights import quantised, repack_int4, repack_int8, summed

TYPES = (torch.bfloat16, torch.float16)
few_examples = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", PRODUCTS)
@few_examples
@given(
    rows=st.integers(1, 70),
    n=st.integers(1, 150),
    group=st.sampled_from((32, 64, 96, 128, 256)),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_product_is_as_exact_as_plain_pytorch(
    kind: str, dtype: torch.dtype, rows: int, n: int, group: int, groups: int, seed: int, device: torch.device
) -> None:
    rows = 1 + rows % GEMV_ROWS if kind.endswith("gemv") else rows
    verdict = evaluate(product(RandomInputs.seeded(seed, device, dtype), kind, rows, n, group * groups, group))
    assert verdict.passed, verdict


TALL = (
    Tile(64, 64, 128, 4, 2, row_tiles=3, splits=1),
    Tile(32, 64, 128, 4, 2, row_tiles=2, splits=2),
    Tile(64, 32, 128, 4, 3, row_tiles=1, splits=3),
)


@pytest.mark.parametrize("tile", TALL, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [9, 100, 161])
def test_every_tile_gives_the_product(tile: Tile, group: int, rows: int, device: torch.device) -> None:
    """Several tiles of rows in a program, several programs along M and along K; the last block of K is not full."""
    inputs = RandomInputs.seeded(rows, device, torch.bfloat16)
    n, k = 70, {32: 736, 64: 704, 128: 768}[group]  # six blocks
    packed4, packed8 = inputs.packed(Scheme.INT4, n, k, group), inputs.packed(Scheme.INT8, n, k)
    weight4, weight8 = repack_int4(packed4), repack_int8(packed8)
    x = inputs.rows(rows, k)
    bytes8, bytes4 = quantised(x), quantised(x, for_int4=True)
    made = [
        (w4a16.kernel_gemm(x, weight4, tile), w4a16.reference_gemm(x, weight4)),
        (w8.kernel_a16_gemm(x, weight8, tile), w8.reference_a16_gemm(x, weight8)),
        (w8a8.kernel(bytes8, weight8, x.dtype, tile), w8a8.reference(bytes8, weight8, x.dtype)),
        (w4a8.kernel(bytes4, weight4, x.dtype, tile), w4a8.reference(bytes4, weight4, x.dtype)),
    ]
    for ours, reference in made:
        assert ours.shape == ((tile.splits, rows, n) if tile.splits > 1 else (rows, n))
        assert ours.dtype == (torch.float32 if tile.splits > 1 else x.dtype)
        torch.testing.assert_close(
            summed(ours, x.dtype), reference, rtol=2**-6, atol=2**-7 * float(reference.abs().max())
        )


@pytest.mark.parametrize("tile", TALL, ids=str)
@pytest.mark.parametrize("group", [32, 128])
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(
    tile: Tile, group: int, device: torch.device, row_by_row: None
) -> None:
    """Whatever the size of its row tile, and in the last program as in any other."""
    inputs = RandomInputs.seeded(3, device, torch.float16)
    most, n, k = 200, 40, {32: 736, 128: 768}[group]
    packed4, packed8 = inputs.packed(Scheme.INT4, n, k, group), inputs.packed(Scheme.INT8, n, k)
    weight4, weight8, x = repack_int4(packed4), repack_int8(packed8), inputs.rows(most, k)
    kernels: list[Callable[[Tensor], Tensor]] = [
        lambda rows: w4a16.kernel_gemm(rows, weight4, tile),
        lambda rows: w8.kernel_a16_gemm(rows, weight8, tile),
        lambda rows: w8a8.kernel(quantised(rows), weight8, x.dtype, tile),
        lambda rows: w4a8.kernel(quantised(rows, for_int4=True), weight4, x.dtype, tile),
    ]
    for gemm in kernels:
        whole = gemm(x)
        for rows in (9, 33, 64, 100, 130):
            assert torch.equal(gemm(x[:rows]), whole[..., :rows, :]), rows


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_int8_sums_of_an_int4_weight_are_exact(dtype: torch.dtype, group: int, device: torch.device) -> None:
    """Where nothing is rounded there is nothing to allow: small integers, powers of two, float32 out."""
    inputs = RandomInputs.seeded(1, device, dtype)
    weight = repack_int4(inputs.packed(Scheme.INT4, 40, 384, group))
    weight.scales.copy_(2.0 ** torch.randint(-3, 3, weight.scales.shape, device=device))
    rows = quantised(inputs.rows(21, 384), for_int4=True)
    rows.scales.fill_(0.5)
    out = w4a8.kernel(rows, weight, torch.float32)
    assert torch.equal(out, w4a8.reference(rows, weight, torch.float32))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_rows_bits_depend_on_no_other_row(dtype: torch.dtype, device: torch.device) -> None:
    """Bitwise exact drafts need it: alone, at another place, or beside rows that are not even finite."""
    inputs = RandomInputs.seeded(2, device, dtype)
    weight4, weight8 = (
        repack_int4(inputs.packed(Scheme.INT4, 70, 640, 128)),
        repack_int8(inputs.packed(Scheme.INT8, 70, 640)),
    )
    x = inputs.rows(GEMV_ROWS, 640)
    other = x.clone()
    other[[0, 3]] = x[[3, 0]]
    other[5] = torch.nan
    kernels: list[Callable[[Tensor], Tensor]] = [
        lambda rows: w4a16.kernel_gemv(rows, weight4),
        lambda rows: w8.kernel_a16_gemv(rows, weight8),
    ]
    for gemv in kernels:
        whole, moved = gemv(x), gemv(other)
        assert torch.equal(gemv(x[:1]), whole[:, :1])
        assert torch.equal(gemv(x[2:5].contiguous()), whole[:, 2:5])
        assert torch.equal(moved[:, 3], whole[:, 0])
        assert torch.equal(moved[:, 4], whole[:, 4])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_bias_is_added_to_the_rounded_product(dtype: torch.dtype, device: torch.device) -> None:
    """To the bit what the product's next reader would add."""
    inputs = RandomInputs.seeded(5, device, dtype)
    weight, bias, x = repack_int8(inputs.packed(Scheme.INT8, 70, 200)), inputs.rows(70), inputs.rows(21, 200)
    rows = quantised(x)
    assert torch.equal(w8.kernel_a16_gemm(x, weight, bias=bias), w8.kernel_a16_gemm(x, weight) + bias)
    biased = w8a8.kernel(rows, weight, dtype, bias=bias)
    assert torch.equal(biased, w8a8.kernel(rows, weight, dtype) + bias)
    assert torch.equal(biased, w8a8.reference(rows, weight, dtype, bias=bias))
    with pytest.raises(AssertionError, match="whole"):
        w8.kernel_a16_gemm(x, weight, Tile(64, 32, 64, 4, 2, splits=2), bias=bias)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    inputs = RandomInputs.seeded(4, device, torch.bfloat16)
    weight = repack_int4(inputs.packed(Scheme.INT4, 8, 128, 128))
    with pytest.raises(AssertionError, match="at most"):
        w4a16.kernel_gemv(inputs.rows(GEMV_ROWS + 1, 128), weight)
    with pytest.raises(AssertionError, match="inputs"):
        w4a16.kernel_gemv(inputs.rows(1, 96), weight)
    with pytest.raises(AssertionError, match="strides"):
        w4a16.kernel_gemv(inputs.rows(128, 2).T, weight)
    with pytest.raises(AssertionError, match="input order"):
        w4a8.kernel(quantised(inputs.rows(1, 128)), weight, torch.bfloat16)
