"""The kernels between products: as exact as PyTorch, and where only moves and roundings happen, its bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs, evaluate
from benchmarks.gpu.kernel_checks.rows import (
    attend,
    attend_pass,
    choose,
    int8_rows,
    norm,
    swiglu,
    tower_gelu,
    tower_norm,
)
from edge_vla.runtime.gpu.kernels import (
    activations,
    head,
    layer_norm,
    pass_attention,
    prefill_attention,
    quantise_rows,
    rms_norm,
)
from edge_vla.runtime.gpu.kernels.attention import in_cache
from edge_vla.runtime.gpu.kernels.pass_attention import SLOTS, SPLITS, Scratch
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, RowFormat, Rows
from edge_vla.spec import DecoderSpec

# The interpreter's numpy tells of infinities that are asked for here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TYPES = (torch.bfloat16, torch.float16)
few_examples = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
rows_, widths, parts_, seeds = st.integers(1, 9), st.integers(2, 300), st.integers(0, 4), st.integers(0, 99)


def int8(rows: Rows) -> Int8Rows:
    assert isinstance(rows, Int8Rows)
    return rows


def assert_passes(check: KernelCheck) -> None:
    verdict = evaluate(check)
    assert verdict.passed, verdict


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@few_examples
@given(rows=rows_, width=widths, parts=parts_, seed=seeds)
def test_norms_and_gates(
    dtype: torch.dtype, rows: int, width: int, parts: int, seed: int, device: torch.device
) -> None:
    inputs = RandomInputs.seeded(seed, device, dtype)
    assert_passes(norm(inputs, rows, width, parts))
    assert_passes(swiglu(inputs, rows, width, parts))
    for check in (tower_norm, tower_gelu):
        assert_passes(check(inputs, rows, width, parts))
    row_format: RowFormat = "int8 for int4" if seed % 2 == 0 else "int8"
    assert_passes(norm(inputs, rows, width, parts, row_format))
    assert_passes(swiglu(inputs, rows, width, parts, row_format))
    for check in (tower_norm, tower_gelu):
        assert_passes(check(inputs, rows, width, parts, row_format))
    assert_passes(int8_rows(inputs, rows, width, row_format))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@few_examples
@given(
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 3),
    head_width=st.sampled_from((16, 20, 72, 128)),
    rows=st.sampled_from((9, 17, 32, 66)),
    chosen=st.tuples(st.integers(0, 65), st.integers(0, 65)),
    start=st.sampled_from((0, 1, 31, 32, 64)) | st.integers(0, 90),
    parts=parts_,
    seed=seeds,
)
def test_a_prefill_in_one_launch(
    dtype: torch.dtype,
    kv_heads: int,
    share: int,
    head_width: int,
    rows: int,
    chosen: tuple[int, int],
    start: int,
    parts: int,
    seed: int,
    device: torch.device,
) -> None:
    heads = kv_heads * share
    spec = DecoderSpec(width=heads * head_width, heads=heads, kv_heads=kv_heads)
    inputs = RandomInputs.seeded(seed, device, dtype)
    first, last = sorted(one % rows for one in chosen)
    assert_passes(attend(inputs, spec, rows, start, start + rows + 3, parts))
    assert_passes(attend(inputs, spec, rows, start, start + rows + 3, parts, range(first, last + 1)))


TILE_BORDERS = (0, 1, SLOTS - 1, SLOTS, 2 * SLOTS - 3, (SPLITS - 1) * SLOTS, (SPLITS - 1) * SLOTS + 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@settings(few_examples, max_examples=8)
@given(
    kv_heads=st.integers(1, 2),
    share=st.integers(1, 3),
    head_width=st.sampled_from((16, 20, 72, 128)),
    rows=st.integers(1, GEMV_ROWS),
    start=st.sampled_from(TILE_BORDERS) | st.integers(0, 300),
    parts=parts_,
    seed=seeds,
)
def test_a_pass_in_one_launch(
    dtype: torch.dtype,
    kv_heads: int,
    share: int,
    head_width: int,
    rows: int,
    start: int,
    parts: int,
    seed: int,
    device: torch.device,
) -> None:
    heads = kv_heads * share
    spec = DecoderSpec(width=heads * head_width, heads=heads, kv_heads=kv_heads)
    inputs = RandomInputs.seeded(seed, device, dtype)
    assert_passes(attend_pass(inputs, spec, rows, start, start + rows + 3, parts))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("start", TILE_BORDERS)
def test_a_pass_leaves_the_rotations_bits_and_its_scratch_as_it_was(
    dtype: torch.dtype, start: int, device: torch.device
) -> None:
    """Twice over one scratch: tickets start at zero again, and what an earlier launch left in it is not read."""
    inputs = RandomInputs.seeded(8, device, dtype)
    qkv = inputs.float32(3, 8, 8 * 32)
    cos, sin = (inputs.rows(600, 16).repeat(1, 2) for _ in range(2))
    position = torch.tensor([start], dtype=torch.int32, device=device)
    keys, values = inputs.rows(2, 600, 32), inputs.rows(2, 600, 32)
    expected = keys.clone(), values.clone()
    in_cache(qkv, cos, sin, position, *expected)
    scratch = Scratch.allocate(4, 32, device)
    once = pass_attention.kernel(qkv, cos, sin, position, keys, values, scratch)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
    assert not scratch.tickets.any()
    scratch.sums.fill_(torch.nan)
    assert torch.equal(pass_attention.kernel(qkv, cos, sin, position, keys, values, scratch), once)


def test_a_row_of_a_pass_depends_on_no_later_row(device: torch.device) -> None:
    inputs = RandomInputs.seeded(9, device, torch.bfloat16)
    qkv, cos, sin = inputs.float32(2, GEMV_ROWS, 8 * 32), inputs.rows(200, 32), inputs.rows(200, 32)
    keys, values, scratch = inputs.rows(2, 200, 32), inputs.rows(2, 200, 32), Scratch.allocate(4, 32, device)
    position = torch.tensor([125], dtype=torch.int32, device=device)
    whole = pass_attention.kernel(qkv, cos, sin, position, keys, values, scratch)
    for rows in range(1, GEMV_ROWS):
        front = qkv[:, :rows].contiguous()
        assert torch.equal(pass_attention.kernel(front, cos, sin, position, keys, values, scratch), whole[:rows])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@few_examples
@given(
    rows=st.integers(1, GEMV_ROWS),
    width=widths,
    bins=st.integers(2, 70),
    first=st.integers(0, 9),
    fed=st.integers(0, 10),
    seed=seeds,
)
def test_choosing(
    dtype: torch.dtype, rows: int, width: int, bins: int, first: int, fed: int, seed: int, device: torch.device
) -> None:
    assert_passes(choose(RandomInputs.seeded(seed, device, dtype), rows, width, bins, first, fed))


def chosen(hidden: Tensor, weight: Tensor) -> Tensor:
    """Best bins and margins (2, M)."""
    out, none = torch.empty(2, hidden.shape[0], device=hidden.device), hidden.new_empty(0)
    head.kernel(hidden, weight, 0, 0, weight, none.int(), none, out)
    return out


def test_the_lowest_of_equal_logits_wins(device: torch.device) -> None:
    inputs = RandomInputs.seeded(1, device, torch.bfloat16)
    hidden = inputs.rows(1, 64)
    weight = hidden.expand(33, 64).contiguous()
    weight[:7] *= -1
    assert chosen(hidden, weight).tolist() == [[7.0], [0.0]]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_flagged(wrong: float, device: torch.device) -> None:
    inputs = RandomInputs.seeded(1, device, torch.bfloat16)
    hidden = inputs.rows(3, 64)
    hidden[1, 5] = wrong
    bins, margins = chosen(hidden, inputs.rows(20, 64))
    assert margins.isfinite().tolist() == [True, False, True]
    assert 0 <= int(bins.min()) <= int(bins.max()) < 20
    rows = int8(quantise_rows.kernel(hidden, "int8"))
    assert rows.scales.isfinite().tolist() == [True, False, True]
    normed = rms_norm.kernel(hidden, None, inputs.rows(64), 1e-6)[1]
    assert isinstance(normed, Tensor)
    assert normed.isfinite().all(dim=1).tolist()[::2] == [True, True]


def test_a_row_of_zeros_has_codes_of_zero(device: torch.device) -> None:
    rows = int8(quantise_rows.kernel(torch.zeros(2, 40, dtype=torch.float16, device=device), "int8"))
    assert not rows.codes.any()
    assert not rows.scales.any()


@pytest.mark.parametrize("row_format", ["int8", "int8 for int4"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_fused_quantisation_is_that_of_the_rounded_rows(
    dtype: torch.dtype, row_format: RowFormat, device: torch.device
) -> None:
    """To the bit: fusing saves a trip through memory, not a rounding."""
    inputs = RandomInputs.seeded(5, device, dtype)
    x, added, gate_up = inputs.rows(4, 200), inputs.float32(2, 4, 200), inputs.float32(3, 4, 400)
    bias, weight, shift = inputs.rows(200), inputs.rows(200), inputs.rows(200)
    kernels: list[Callable[[RowFormat], Rows]] = [
        lambda made: rms_norm.kernel(x, added, weight, 1e-6, made)[1],
        lambda made: activations.kernel_swiglu(gate_up, dtype, made),
        lambda made: activations.kernel_gelu(x, bias, made),
        lambda made: activations.kernel_gelu(added, bias, made),
        lambda made: layer_norm.kernel(x, x, bias, None, weight, shift, 1e-6, made)[1],
        lambda made: layer_norm.kernel(x, added, bias, None, weight, shift, 1e-6, made)[1],
    ]
    for kernel in kernels:
        plain = kernel("16 bits")
        assert isinstance(plain, Tensor)
        expected, fused = int8(quantise_rows.reference(plain, row_format)), int8(kernel(row_format))
        assert torch.equal(expected.codes, fused.codes)
        assert torch.equal(expected.scales, fused.scales)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("start", [0, 45])
def test_a_prefill_leaves_the_rotations_bits_and_reads_no_slot_that_it_writes(
    dtype: torch.dtype, start: int, device: torch.device
) -> None:
    """Keys of every tile are rotated more than once, always to the same bits; slots are poisoned before."""
    inputs = RandomInputs.seeded(6, device, dtype)
    qkv, begin = inputs.float32(2, 70, 8 * 32), torch.zeros(1, dtype=torch.int32, device=device)
    cos, sin = (inputs.rows(120, 16).repeat(1, 2) for _ in range(2))
    position = torch.tensor([start], dtype=torch.int32, device=device)
    keys, values = inputs.rows(2, 120, 32), inputs.rows(2, 120, 32)
    keys[:, start:], values[:, start:] = torch.nan, torch.nan
    expected = keys.clone(), values.clone()
    in_cache(qkv, cos, sin, position, *expected)
    assert prefill_attention.kernel(qkv, cos, sin, position, keys, values, begin, 70).isfinite().all()
    assert torch.equal(keys[:, : start + 70], expected[0][:, : start + 70])
    assert torch.equal(values[:, : start + 70], expected[1][:, : start + 70])


@pytest.mark.parametrize("start", [0, 45])
def test_a_row_of_a_prefill_depends_on_no_later_row(start: int, device: torch.device) -> None:
    """Nor on which rows are wanted beside it."""
    inputs = RandomInputs.seeded(6, device, torch.bfloat16)
    qkv, cos, sin = inputs.float32(2, 70, 8 * 32), inputs.rows(200, 32), inputs.rows(200, 32)
    keys, values = inputs.rows(2, 200, 32), inputs.rows(2, 200, 32)

    def of(rows: int, first: int) -> Tensor:
        front = qkv[:, :rows].contiguous()
        at, begin = (torch.tensor([one], dtype=torch.int32, device=device) for one in (start, first))
        return prefill_attention.kernel(front, cos, sin, at, keys.clone(), values.clone(), begin, rows - first)

    whole = of(70, 0)
    for rows, first in ((70, 69), (70, 40), (64, 0), (33, 31), (9, 8)):
        assert torch.equal(of(rows, first), whole[first:rows])


def test_a_cache_longer_than_the_pass_is_read_by_its_strides(device: torch.device) -> None:
    """Layers' caches are views of one tensor, and a pass sees the first slots of each."""
    inputs = RandomInputs.seeded(7, device, torch.bfloat16)
    whole = inputs.rows(2, 3, 90, 32)
    keys, values = whole[0, :, :64], whole[1, :, :64]
    start, begin = (torch.tensor([one], dtype=torch.int32, device=device) for one in (20, 0))
    qkv, cos, sin = inputs.rows(9, 12 * 32), inputs.rows(64, 32), inputs.rows(64, 32)
    untouched = whole[:, :, 64:].clone()
    alone = keys.contiguous(), values.contiguous()
    same = prefill_attention.kernel(qkv, cos, sin, start, *alone, begin, 9)
    assert torch.equal(prefill_attention.kernel(qkv, cos, sin, start, keys, values, begin, 9), same)
    assert torch.equal(whole[:, :, 64:], untouched)
    assert torch.equal(keys, alone[0])
    assert torch.equal(values[:, 20:29], qkv.view(9, 12, 32)[:, 9:].transpose(0, 1))
