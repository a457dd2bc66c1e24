"""Layouts of weights and rows: exact inverses of one another, and the positions that the kernels rely on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.kernel_checks.check import RandomInputs
from edge_vla.errors import BackendError
from edge_vla.quant import PackedWeight, Scheme, as_int4, dequantise, quantise
from edge_vla.runtime.gpu.kernels.weights import (
    BLOCK_K,
    STEPS,
    as_int8,
    in_byte_order,
    in_input_order,
    quantised,
    repack_int4,
    repack_int8,
    restore_int4,
    restore_int8,
    summed,
)

CPU = torch.device("cpu")


def same(left: PackedWeight, right: PackedWeight) -> bool:
    assert left.scales is not None
    assert right.scales is not None
    about = (left.scheme, left.shape, left.group) == (right.scheme, right.shape, right.group)
    return about and torch.equal(left.codes, right.codes) and torch.equal(left.scales, right.scales)


@given(
    n=st.integers(1, 40),
    group=st.sampled_from((32, 64, 96, 128, 160, 256)),
    groups=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_repacking_loses_nothing(n: int, group: int, groups: int, seed: int) -> None:
    inputs = RandomInputs.seeded(seed, CPU, torch.bfloat16)
    int4 = inputs.packed(Scheme.INT4, n, group * groups, group)
    assert same(restore_int4(repack_int4(int4)), int4)
    int8 = inputs.packed(Scheme.INT8, n, group * groups)
    assert same(restore_int8(repack_int8(int8)), int8)


def test_where_an_input_lies() -> None:
    """Inputs 0..15 of a line of weights have codes 0..15, the rest are zero weights: golden words."""
    codes = torch.full((1, BLOCK_K), 8, dtype=torch.uint8)
    codes[0, :16] = torch.arange(16)
    packed = PackedWeight(
        Scheme.INT4, (1, BLOCK_K), BLOCK_K, codes[:, 0::2] | codes[:, 1::2] << 4, torch.ones(1, 1, dtype=torch.half)
    )
    words = repack_int4(packed).codes
    assert words.shape == (1, 1, 16)
    zeros = 0x88808880 - (1 << 32)
    expected = [zeros | 2 * word | (2 * word + 1) << 16 for word in range(8)]
    assert words[0, 0].tolist() == [*expected, *[0x88888888 - (1 << 32)] * 8]


@given(rows=st.integers(1, 4), k=st.integers(1, 400))
def test_byte_order_is_a_permutation(rows: int, k: int) -> None:
    codes = torch.arange(rows * k).view(rows, k)
    moved = in_byte_order(codes)
    assert moved.shape[1] % BLOCK_K == 0
    assert torch.equal(in_input_order(moved, k), codes)
    assert int((moved != 0).sum()) == rows * k - 1


def test_bytes_of_a_word_meet_their_rows() -> None:
    """`words >> 4 s & 0x0F0F0F0F`, byte by byte, times rows in byte order: the product, without any kernel."""
    inputs = RandomInputs.seeded(1, CPU, torch.float32)
    packed = inputs.packed(Scheme.INT4, 6, 2 * BLOCK_K, BLOCK_K)
    weight = repack_int4(packed)
    nibbles = torch.stack([weight.codes >> 4 * shift & 0x0F0F0F0F for shift in (0, 1)], dim=2)  # blocks, N, shift, word
    levels = nibbles.contiguous().view(torch.int8).view(2, 6, BLOCK_K).double() - 8
    rows = quantised(inputs.rows(3, 2 * BLOCK_K), for_int4=True)
    sums = rows.codes.view(3, 2, BLOCK_K).double().transpose(0, 1) @ levels.transpose(1, 2)
    plain = in_input_order(rows.codes, 2 * BLOCK_K).double()
    for block in range(2):
        span = slice(block * BLOCK_K, (block + 1) * BLOCK_K)
        ones = PackedWeight(Scheme.INT4, packed.shape, BLOCK_K, packed.codes, torch.ones(6, 2, dtype=torch.half))
        assert torch.equal(sums[block], plain[:, span] @ dequantise(ones)[:, span].double().T)


@given(rows=st.integers(1, 5), k=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_rounded_row_is_within_half_a_step(rows: int, k: int, seed: int) -> None:
    x = RandomInputs.seeded(seed, CPU, torch.bfloat16).rows(rows, k)
    made = quantised(x)
    back = made.codes.float() * made.scales[:, None]
    assert ((back - x.float()).abs() <= made.scales[:, None] * 0.5001).all()
    assert (made.codes.abs().amax(dim=1) == 127).all()


def test_partial_sums_are_added_in_order() -> None:
    parts = torch.tensor([[[1.0]], [[2.0**25]], [[-(2.0**25)]]])
    assert float(summed(parts, torch.float32)) == 0.0
    assert float(summed(parts.flip(0), torch.float32)) == 1.0


def test_formats_without_a_kernel_are_refused() -> None:
    weight = torch.randn(4, 96)
    with pytest.raises(BackendError, match="multiple of 32"):
        repack_int4(quantise(weight, Scheme.INT4, 48))
    narrow = quantise(weight, Scheme.INT3, 32)
    with pytest.raises(BackendError, match="as_int4"):
        repack_int4(narrow)
    assert same(restore_int4(repack_int4(as_int4(narrow))), as_int4(narrow))
    with pytest.raises(BackendError, match="expected an int8 weight, got int3"):
        repack_int8(narrow)


@given(
    n=st.integers(1, 9),
    group=st.sampled_from((32, 96, 128)),
    groups=st.integers(1, 5),
    spread=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_an_int4_weight_as_int8(n: int, group: int, groups: int, spread: int, seed: int) -> None:
    """Each weight within half a level of itself, and half a step for each of its own levels; the range is used."""
    inputs = RandomInputs.seeded(seed, CPU, torch.bfloat16)
    packed = inputs.packed(Scheme.INT4, n, group * groups, group)
    assert packed.scales is not None
    packed.scales.mul_(2.0 ** -torch.randint(0, spread + 1, packed.scales.shape, generator=inputs.generator))
    int8 = as_int8(repack_int4(packed))
    exact = dequantise(packed).double()
    codes, level = int8.codes, int8.scales.double()[:, None]
    own = exact.abs() / packed.scales.double().repeat_interleave(group, dim=1)
    assert bool(((codes.double() * level - exact).abs() <= level * (0.5 + own * 0.5 / STEPS) * (1 + 1e-6)).all())
    assert bool(((codes == 0) | (codes.sign() == exact.sign())).all())
    widest = packed.scales.double().amax(dim=1, keepdim=True)
    assert bool((widest / level >= 15.98).all()), "16 of 127 levels an int4 level, but for the bits that are cut"


def test_a_group_without_weights_has_no_say() -> None:
    """Its scale is of nothing, however large; an output without any weight is zero."""
    codes = torch.full((2, 32), 0x88, dtype=torch.uint8)  # zeros
    codes[0, :16] = 0x1F  # levels 7 and -7 in the first group
    scales = torch.tensor([[0.01, 900.0], [1.0, 1.0]], dtype=torch.half)
    weight = PackedWeight(Scheme.INT4, (2, 64), 32, codes, scales)
    int8 = as_int8(repack_int4(weight))
    torch.testing.assert_close(int8.codes.float() * int8.scales[:, None], dequantise(weight), rtol=2e-3, atol=0)
