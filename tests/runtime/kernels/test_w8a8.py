"""int8 times int8: the fast product is the slow one bit for bit, and a row is its own affair."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme, quantise
from edge_vla.runtime.kernels import pick
from edge_vla.runtime.kernels.w8a8 import MOST_INPUTS, CpuW8A8, RoundedRows, round_rows

CPU, BF16 = torch.device("cpu"), torch.bfloat16
seeds = st.integers(0, 2**31)


def weight(n: int = 40, k: int = 256, seed: int = 1) -> PackedWeight:
    return quantise(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)), Scheme.W8A8, None)


def rows(count: int, k: int = 256, seed: int = 2, dtype: torch.dtype = BF16) -> Tensor:
    """Rows of very different size, some with an outlier, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, k, generator=generator) * torch.randn(count, 1, generator=generator).mul_(3).exp_()
    x[::3, 7] *= 50
    return x.to(dtype)


def by_hand(x: Tensor, packed: PackedWeight) -> Tensor:
    """The textbook in plain Python: whole numbers all the way, and one rounding to float32 at each scale."""
    assert packed.scales is not None
    single = torch.float32
    out = torch.empty(len(x), packed.shape[0])
    for i, row in enumerate(x.float()):
        step = (row.abs().max() / 127).to(single)
        codes = [round(float(value)) for value in (row / step)]  # Python too rounds halves to even
        for n, (line, scale) in enumerate(zip(packed.codes.tolist(), packed.scales.float(), strict=True)):
            total = sum(a * b for a, b in zip(codes, line, strict=True))
            out[i, n] = torch.tensor(total, dtype=single) * step * scale
    return out.to(x.dtype)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("kernel", [CpuW8A8, RoundedRows])
def test_equal_to_the_textbook(kernel: type[RoundedRows], dtype: torch.dtype) -> None:
    packed, x = weight(12), rows(9, dtype=dtype)
    assert kernel.runs(packed, dtype, CPU)
    assert torch.equal(kernel(packed, dtype, CPU)(x), by_hand(x, packed))


@settings(max_examples=30)
@given(seeds, st.sampled_from([1, 2, 7, 8, 16, 17, 65, 288]), st.sampled_from([(256, 256), (40, 64), (48, 1040)]))
def test_fast_equals_slow_bit_for_bit(seed: int, count: int, shape: tuple[int, int]) -> None:
    packed, x = weight(*shape, seed=seed), rows(count, shape[1], seed)
    assert torch.equal(CpuW8A8(packed, BF16, CPU)(x), RoundedRows(packed, BF16, CPU)(x))


@settings(max_examples=30)
@given(seeds, st.integers(1, 100), st.integers(0, 99))
def test_the_bits_of_a_row_depend_on_no_other_row(seed: int, count: int, place: int) -> None:
    """Alone, among others, and wherever it stands: what lets drafts be checked many at a time."""
    product, x = CpuW8A8(weight(), BF16, CPU), rows(100, seed=seed)
    row = x[place : place + 1]
    alone = product(row)
    among = torch.cat([x[:place], x[place + 1 :]])[: count - 1]
    assert torch.equal(product(torch.cat([row, among]))[:1], alone)
    assert torch.equal(product(torch.cat([among, row]))[-1:], alone)


@given(seeds)
def test_rows_are_within_half_a_step(seed: int) -> None:
    x = rows(6, seed=seed)
    codes, steps = round_rows(x)
    assert codes.abs().amax(dim=1).tolist() == [127] * 6
    assert ((codes.float() * steps - x.float()).abs() <= steps * (0.5 + 1e-4)).all()


def test_a_row_of_zeros_gives_zeros() -> None:
    x = rows(20)
    x[4] = 0
    out = CpuW8A8(weight(), BF16, CPU)(x)
    assert not out[4].any()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kernel", [CpuW8A8, RoundedRows])
def test_a_number_that_is_not_finite_is_not_rounded_away(kernel: type[RoundedRows], value: float) -> None:
    """It must reach the check of the answer: an int8 code cannot hold it, but its row's step does."""
    x = rows(20)
    x[4, 3] = value
    out = kernel(weight(), BF16, CPU)(x)
    assert not torch.isfinite(out[4]).any()
    assert torch.isfinite(out[:4]).all()
    assert torch.isfinite(out[5:]).all()


def test_codes_may_lie_anywhere() -> None:
    packed = weight()
    place = torch.zeros(packed.codes.numel() + 8, dtype=torch.int8)
    moved = place[3 : 3 + packed.codes.numel()].view(packed.codes.shape)
    moved.copy_(packed.codes)
    shifted = dataclasses.replace(packed, codes=moved)
    assert torch.equal(CpuW8A8(shifted, BF16, CPU)(rows(9)), CpuW8A8(packed, BF16, CPU)(rows(9)))


def test_the_choice() -> None:
    packed = weight()
    assert pick(packed, BF16, CPU, rows=300) is CpuW8A8
    assert pick(packed, torch.float32, CPU) is CpuW8A8
    assert pick(packed, BF16, CPU, "reference") is RoundedRows
    with pytest.raises(UsageError, match="choose auto or one of"):
        pick(packed, BF16, CPU, "w8a8")
    wide = dataclasses.replace(packed, shape=(40, MOST_INPUTS + 1))
    assert pick(wide, BF16, CPU) is RoundedRows, "a sum of so many products may not fit 32 bits"
