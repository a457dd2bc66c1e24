"""The paper plan against hand-computed limits, published figures, and what must hold of any device."""

from __future__ import annotations

import pytest

from edge_vla.device.planner import DEVICES, plan
from edge_vla.errors import UsageError
from edge_vla.spec import OPENVLA_7B

DIMS = 7


# Rooflines worked out by hand for a full-vocabulary head; ours computes 256 rows, a few per cent of a step less.
@pytest.mark.parametrize(
    ("device", "bits", "limit_ms"),
    [("orin-64", 16, 489), ("orin-64", 4, 208), ("rtx4090", 8, 66), ("rtx4090", 4, 47.5), ("h200", 4, 10.5)],
)
def test_limits_are_those_worked_out_by_hand(device: str, bits: int, limit_ms: float) -> None:
    found = plan(OPENVLA_7B, device, bits, DIMS).action.limit_ms
    assert 0.93 * limit_ms <= found <= 1.02 * limit_ms


def test_the_published_int4_time_on_orin_lies_in_the_range() -> None:
    """NanoLLM: 336 ms with int4 weights on an AGX Orin."""
    found = plan(OPENVLA_7B, "orin-64", 4, DIMS)
    assert found.action.low_ms < 336 < found.action.high_ms * 1.05


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
    with pytest.raises(UsageError, match="choose 16 or 8"):
        plan(OPENVLA_7B, "rtx4090", 4, DIMS, 4)


def test_what_fits_where() -> None:
    assert [plan(OPENVLA_7B, "orin-nano-super", bits, DIMS).fits for bits in (16, 8, 4)] == ["no", "no", "yes"]
    assert plan(OPENVLA_7B, "rtx3090", 16, DIMS).fits == "yes"


def test_a_device_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="choose one of orin-64"):
        plan(OPENVLA_7B, "abacus", 4, DIMS)
    with pytest.raises(UsageError, match="choose 16, 8 or 4"):
        plan(OPENVLA_7B, "h200", 5, DIMS)
