"""Laws of the number formats, and their bytes."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edge_vla.errors import CheckpointError, UsageError
from edge_vla.quant import (
    GRIDS,
    PackedWeight,
    Scheme,
    as_int4,
    dequantise,
    pack_codes,
    pack_nibbles,
    plan,
    quantise,
    relative_error,
    round_scale,
    stored_bytes,
    unpack_codes,
    unpack_nibbles,
)

seeds, scales = st.integers(0, 2**31), st.floats(1e-6, 1e3)


def weight(seed: int, scale: float, n: int = 8, k: int = 128) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * scale


@given(seeds)
def test_unpack_inverts_pack(seed: int) -> None:
    codes = torch.randint(0, 16, (5, 64), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


@given(seeds, scales, st.sampled_from([32, 64, 128]))
def test_int4_is_within_half_a_step(seed: int, scale: float, group: int) -> None:
    real = weight(seed, scale)
    packed = quantise(real, Scheme.INT4, group)
    assert packed.scales is not None
    steps = packed.scales.float().repeat_interleave(group, dim=1)
    assert ((dequantise(packed) - real).abs() <= steps * (0.5 + 1e-6)).all()


@given(seeds, scales)
def test_int8_is_within_half_a_step(seed: int, scale: float) -> None:
    real = weight(seed, scale)
    packed = quantise(real, Scheme.INT8, None)
    assert packed.scales is not None
    assert ((dequantise(packed) - real).abs() <= packed.scales.float()[:, None] * (0.5 + 1e-6)).all()


@given(seeds, scales, st.sampled_from([(Scheme.INT4, 32), (Scheme.INT8, None)]))
def test_quantising_twice_changes_nothing(seed: int, scale: float, form: tuple[Scheme, int | None]) -> None:
    """Codes stand for themselves: what was rounded once is not rounded again."""
    once = dequantise(quantise(weight(seed, scale), *form))
    packed = quantise(weight(seed, scale), *form)
    assert torch.equal(dequantise(packed), once)
    assert relative_error(once, packed) == 0


@given(st.floats(0, 6e4, width=32))
def test_scales_are_exact_in_both_16_bit_types(value: float) -> None:
    rounded = round_scale(torch.tensor([value]))
    assert torch.equal(rounded.half().float(), rounded)
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert value == 0 or value <= rounded.item() <= max(value * (1 + 2**-7), value + 2.0**-24)


def test_bytes_of_a_ramp() -> None:
    """Golden: what a 16 x 128 ramp looks like on disk, so that the format cannot drift."""
    ramp = (torch.arange(16 * 128).view(16, 128) - 1024) / 512
    int4, int8 = quantise(ramp, Scheme.INT4, 64), quantise(ramp, Scheme.INT8, None)
    assert int4.codes.shape == (16, 64)
    assert int4.codes.dtype == torch.uint8
    assert int4.codes[0, :4].tolist() == [0x11, 0x11, 0x11, 0x11]
    assert int4.codes[15, -4:].tolist() == [0xFF, 0xFF, 0xFF, 0xFF]
    assert int8.codes[0, 0].item() == -126  # the scale was rounded up, so the largest weight is a step short of 127
    digests = [
        hashlib.sha256(packed.codes.numpy().tobytes() + packed.scales.numpy().tobytes()).hexdigest()[:16]
        for packed in (int4, int8)
        if packed.scales is not None
    ]
    assert digests == ["8ba2752a9c0953b3", "3164305485fc23c9"]


def test_zeros_stay_zeros() -> None:
    for form in ((Scheme.INT4, 32), (Scheme.INT8, None)):
        assert not dequantise(quantise(torch.zeros(4, 64), *form)).any()


@pytest.mark.parametrize(
    ("k", "expected"),
    [(4096, (Scheme.INT4, 128)), (192, (Scheme.INT4, 64)), (352, (Scheme.INT4, 32)), (90, (Scheme.INT8, None))],
)
def test_the_largest_group_that_divides(k: int, expected: tuple[Scheme, int | None]) -> None:
    assert plan(4, k, None, "w") == expected


def test_an_explicit_group_must_divide() -> None:
    with pytest.raises(UsageError, match="does not divide"):
        plan(4, 4096, 96, "q_proj")
    assert plan(4, 4096, 256, "q_proj") == (Scheme.INT4, 256)


def test_shapes_that_do_not_fit_are_refused() -> None:
    packed = quantise(weight(0, 1), Scheme.INT4, 64)
    wrong = PackedWeight(packed.scheme, (8, 256), 64, packed.codes, packed.scales)
    with pytest.raises(CheckpointError, match="needs codes"):
        wrong.check("q_proj")


@given(seeds, st.sampled_from([Scheme.INT3, Scheme.INT2]))
def test_unpack_inverts_pack_in_narrow_codes(seed: int, scheme: Scheme) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, GRIDS[scheme].count, (5, 64), generator=generator).to(torch.uint8)
    packed = pack_codes(codes, scheme)
    assert packed.shape == (5, 64 * GRIDS[scheme].bits // 8)
    assert torch.equal(unpack_codes(packed, scheme), codes)


@given(seeds, scales, st.sampled_from([Scheme.INT3, Scheme.INT2]), st.sampled_from([32, 64, 128]))
def test_narrow_codes_are_within_half_a_step(seed: int, scale: float, scheme: Scheme, group: int) -> None:
    real = weight(seed, scale)
    packed = quantise(real, scheme, group).check("w")
    assert packed.scales is not None
    steps = packed.scales.float().repeat_interleave(group, dim=1) * GRIDS[scheme].step
    assert ((dequantise(packed) - real).abs() <= steps * (0.5 + 1e-6)).all()


@given(seeds, scales, st.sampled_from([Scheme.INT3, Scheme.INT2]))
def test_int4_holds_narrow_weights_exactly(seed: int, scale: float, scheme: Scheme) -> None:
    packed = quantise(weight(seed, scale), scheme, 64)
    wide = as_int4(packed).check("w")
    assert wide.scheme is Scheme.INT4
    assert torch.equal(dequantise(wide), dequantise(packed))
    assert wide.scales is packed.scales


def test_as_int4_leaves_the_others() -> None:
    for form in ((Scheme.INT4, 32), (Scheme.INT8, None), (Scheme.BF16, None)):
        packed = quantise(weight(0, 1), *form)
        assert as_int4(packed) is packed


def test_bytes_of_a_narrow_ramp() -> None:
    """Golden: eight codes to three bytes or two, the first code in the lowest bits."""
    codes = torch.arange(8, dtype=torch.uint8)[None]
    assert pack_codes(codes, Scheme.INT3)[0].tolist() == [0b10_001_000, 0b1_100_011_0, 0b111_110_10]
    assert pack_codes(codes % 4, Scheme.INT2)[0].tolist() == [0b11_10_01_00] * 2


@pytest.mark.parametrize(("scheme", "bits"), [(Scheme.INT3, 3), (Scheme.INT2, 2)])
def test_narrow_sizes(scheme: Scheme, bits: int) -> None:
    packed = quantise(weight(0, 1), scheme, 64)
    assert stored_bytes(scheme, packed.shape, 64) == packed.bytes == 8 * 128 * bits // 8 + 8 * 2 * 2


def test_narrow_codes_come_in_eights() -> None:
    with pytest.raises(UsageError, match="eights"):
        plan(3, 36, 4, "w")
    assert plan(3, 36, None, "w") == (Scheme.INT8, None)
