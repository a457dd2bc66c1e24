"""Wilson's interval equals scipy's."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from edge_vla.benchmarks.statistics import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 40), (382, 400)])
def test_equals_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_tried() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
