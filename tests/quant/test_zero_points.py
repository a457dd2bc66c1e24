"""Laws of uint4: steps between each group's least and greatest weight, with zero among them."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edge_vla.errors import CheckpointError
from edge_vla.quant import (
    PackedWeight,
    Scheme,
    dequantise,
    expand_scales,
    quantise,
    relative_error,
    stored_bytes,
    unpack_codes,
)

seeds, scales = st.integers(0, 2**31), st.floats(1e-5, 1e3)


def lopsided(seed: int, scale: float) -> Tensor:
    """(8, 128) with a mean of its own in every row, the last row all of one sign."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 128, generator=generator) + torch.randn(8, 1, generator=generator)
    weight[-1] = weight[-1].abs() + 1
    return weight * scale


def by_hand(weight: Tensor, group: int) -> Tensor:
    """The codes of the textbook: scale (max - min) / 15 rounded up, zero point -min / scale, in plain Python."""
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    packed = quantise(weight, Scheme.UINT4, group)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group].tolist()
            low, high = min(*part, 0.0), max(*part, 0.0)
            assert packed.scales is not None
            scale = float(packed.scales[row, start // group])
            least = (high - low) / 15
            assert least * (1 - 2**-23) <= scale <= max(least * (1 + 2**-7), least + 2**-23), "taken up in float32"
            zero = min(max(round(-low / scale), 0), 15)
            offset = float(torch.tensor((8 - zero) * scale).bfloat16())
            for column, value in enumerate(part, start):
                codes[row, column] = min(max(round((value - offset) / scale + 8), 0), 15)
    return codes


@given(seeds, scales, st.sampled_from([32, 64, 128]))
def test_no_weight_is_further_than_a_step_from_its_code(seed: int, scale: float, group: int) -> None:
    """Half a step, and where the zero point was rounded half of one more at the range's end."""
    real = lopsided(seed, scale)
    packed = quantise(real, Scheme.UINT4, group).check("w")
    assert ((dequantise(packed) - real).abs() <= expand_scales(packed.steps.scales, packed.shape) * 1.02).all()


@given(seeds, st.sampled_from([32, 128]))
def test_codes_are_the_textbooks(seed: int, group: int) -> None:
    real = lopsided(seed, 1)
    found = unpack_codes(quantise(real, Scheme.UINT4, group).codes, Scheme.UINT4)
    differ = (found.int() - by_hand(real, group).int()).abs()
    assert differ.max() <= 1
    assert differ.double().mean() < 0.01, "in float32 a weight between two codes may go to the other one"


@given(seeds, scales)
def test_zero_stays_zero_to_a_32nd_of_a_step(seed: int, scale: float) -> None:
    real = lopsided(seed, scale)
    real[:, ::3] = 0
    packed = quantise(real, Scheme.UINT4, 64)
    off = dequantise(packed)[:, ::3].abs() / expand_scales(packed.steps.scales, packed.shape)[:, ::3]
    assert off.max() <= 1 / 32


@given(seeds, scales)
def test_weights_and_offsets_are_exact_where_products_take_them(seed: int, scale: float) -> None:
    """Offsets in bf16, and weights in float32 are what float64 says."""
    packed = quantise(lopsided(seed, scale), Scheme.UINT4, 32)
    offsets = packed.steps.offsets()
    assert torch.equal(offsets.bfloat16().float(), offsets)
    levels = unpack_codes(packed.codes, Scheme.UINT4).double() - 8
    exact = levels * expand_scales(packed.steps.scales, packed.shape).double()
    assert torch.equal(dequantise(packed).double(), exact + expand_scales(offsets, packed.shape).double())


@given(seeds)
def test_lopsided_groups_lose_less_than_on_a_symmetric_grid(seed: int) -> None:
    real = lopsided(seed, 1)
    assert relative_error(real, quantise(real, Scheme.UINT4, 32)) < relative_error(
        real, quantise(real, Scheme.INT4, 32)
    )


def test_bytes_of_a_ramp() -> None:
    """Golden, as `test_formats` has it for the symmetric grids."""
    packed = quantise((torch.arange(16 * 128).view(16, 128) - 800) / 512, Scheme.UINT4, 64)
    assert packed.scales is not None
    assert packed.zeros is not None
    assert packed.zeros[:, 0].tolist() == [15] * 6 + [8] + [0] * 9
    assert packed.bytes == stored_bytes(Scheme.UINT4, (16, 128), 64) == 16 * 64 + 32 * 2 + 32
    parts = (packed.codes, packed.scales, packed.zeros)
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]
    assert digest == "1cd864e039a9b81a"


def test_what_does_not_fit_is_refused() -> None:
    packed = quantise(lopsided(0, 1), Scheme.UINT4, 64)
    assert packed.zeros is not None
    wrong: list[PackedWeight] = [
        dataclasses.replace(packed, zeros=None),
        dataclasses.replace(packed, zeros=packed.zeros[:, :1]),
        dataclasses.replace(packed, zeros=packed.zeros + 16),
        dataclasses.replace(packed, zeros=packed.zeros.int()),
        dataclasses.replace(quantise(lopsided(0, 1), Scheme.INT4, 64), zeros=packed.zeros),
    ]
    for one in wrong:
        with pytest.raises(CheckpointError, match="zero points"):
            one.check("q_proj")


def test_a_group_of_zeros_stays_one() -> None:
    assert not dequantise(quantise(torch.zeros(4, 64), Scheme.UINT4, 32)).any()
