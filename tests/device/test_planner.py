"""The paper plan against hand-computed limits, published figures, and what must hold of any device."""

from __future__ import annotations

import pytest

from edge_vla.device.devices import DEVICES, OF_MEASURED, OF_SHEET
from edge_vla.device.planner import plan
from edge_vla.errors import UsageError
from edge_vla.spec import OPENVLA_7B

DIMS = 7


# Rooflines worked out by hand for a full-vocabulary head; ours computes 256 rows, a few per cent of a step less.
@pytest.mark.parametrize(
    ("device", "bits", "limit_ms"),
    [("rtx4090", 8, 66), ("rtx4090", 4, 47.5), ("h200", 4, 10.5)],
)
def test_limits_are_those_worked_out_by_hand(device: str, bits: int, limit_ms: float) -> None:
    found = plan(OPENVLA_7B, device, bits, DIMS).action.limit_ms
    assert 0.93 * limit_ms <= found <= 1.02 * limit_ms


@pytest.mark.parametrize(("activations", "limit_ms"), [(16, 262), (8, 193)])
def test_limits_of_orin_are_those_of_its_measured_ceilings(activations: int, limit_ms: float) -> None:
    """Worked out elsewhere from 173 GB/s, 29.5 TFLOP/s and 64.4 TOPS, with 4-bit weights."""
    found = plan(OPENVLA_7B, "orin-64", 4, DIMS, activations=activations)
    assert found.action.limit_ms == pytest.approx(limit_ms, abs=0.5)
    assert found.reached == OF_MEASURED


@pytest.mark.parametrize("name", DEVICES)
def test_every_ceiling_has_a_source_and_shares_that_fit_it(name: str) -> None:
    device = DEVICES[name]
    assert all(source.strip() for source in device.sources().values())
    measured = ["measured" in source for source in (device.read.source, device.bf16.source)]
    assert device.reached is (OF_MEASURED if "orin" in name else OF_SHEET)
    assert all(measured) or "orin" not in name
    assert device.int8.value >= 1.9 * device.bf16.value


def test_a_smaller_orin_is_part_of_the_large_one() -> None:
    """By bus, cores and clocks of the data sheets."""
    nano, nx, agx = DEVICES["orin-nano-super"], DEVICES["orin-nx-16"], DEVICES["orin-64"]
    assert nano.read.value == agx.read.value / 2 == nx.read.value
    assert nx.int8.value / nano.int8.value == pytest.approx(1173 / 1020)
    assert nano.bf16.value < nx.bf16.value < agx.bf16.value / 2


def test_the_published_int4_time_on_orin_lies_in_the_range() -> None:
    """NanoLLM: 336 ms with int4 weights on an AGX Orin."""
    found = plan(OPENVLA_7B, "orin-64", 4, DIMS)
    assert found.action.low_ms < 336 < found.action.high_ms


@pytest.mark.parametrize("device", DEVICES)
def test_fewer_bits_are_smaller_and_no_slower(device: str) -> None:
    plans = [plan(OPENVLA_7B, device, bits, DIMS) for bits in (16, 8, 4)]
    sizes, times = [one.memory_high_bytes for one in plans], [one.action.high_ms for one in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert times == sorted(times, reverse=True)
    assert all(one.action.low_ms >= one.action.limit_ms for one in plans)


def test_towers_in_eight_bits_are_half_as_large() -> None:
    """What an artifact of int4 and int8 towers takes: README's own recipe."""
    plain, packed = (plan(OPENVLA_7B, "rtx4090", 4, DIMS, bits) for bits in (16, 8))
    assert packed.memory_bytes["towers and projector"] == plain.memory_bytes["towers and projector"] / 2
    assert packed.action.limit_ms <= plain.action.limit_ms
    with pytest.raises(UsageError, match="choose one of 16, 8"):
        plan(OPENVLA_7B, "rtx4090", 4, DIMS, 4)


def test_what_fits_where() -> None:
    assert [plan(OPENVLA_7B, "orin-nano-super", bits, DIMS).fits for bits in (16, 8, 4)] == ["no", "no", "yes"]
    assert plan(OPENVLA_7B, "rtx3090", 16, DIMS).fits == "yes"
    assert [plan(OPENVLA_7B, card, 4, DIMS).fits for card in ("rtx4060", "rtx4060-laptop", "cpu-avx2")] == ["yes"] * 3
    assert plan(OPENVLA_7B, "rtx3060", 8, DIMS).fits == "yes"


def test_a_device_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="choose one of orin-64"):
        plan(OPENVLA_7B, "abacus", 4, DIMS)
    with pytest.raises(UsageError, match="choose one of 16, 8, 4"):
        plan(OPENVLA_7B, "h200", 5, DIMS)
    with pytest.raises(UsageError, match="--activations 4: choose one of 16, 8"):
        plan(OPENVLA_7B, "h200", 4, DIMS, activations=4)
