"""What int4 weights lose as int8, on weights small enough to count."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.int4_as_int8 import loss, measure


def test_weights_that_both_formats_hold_lose_nothing() -> None:
    levels = torch.randint(-7, 8, (4, 256), generator=torch.Generator().manual_seed(1)).float()
    levels[:, ::128] = 7.5  # both groups need the whole range, and share a scale
    found = loss(levels)
    assert found.int8_of_int4 < 1e-3
    assert found.int4 == pytest.approx(found.both, rel=1e-2)


def test_rounding_twice_costs_little_beside_int4() -> None:
    found = measure((16, 1024)).losses
    assert all(one.int8_of_int4 < one.int4 / 3 and one.both < 1.1 * one.int4 for one in found.values())
    assert found["normal"].int8_of_int4 < found["an outlier of 20 an output"].int8_of_int4
