"""The cost of watching is measured for both kinds of work; how much it is, the result says, not a test."""

from __future__ import annotations

import pytest

from benchmarks.watcher_cost import measure


@pytest.mark.slow
def test_watching_costs_are_measured() -> None:
    found = measure(rounds=1, queries=2, ballast=1 << 20)
    assert set(found.costs) == {"count", "allocate"}
    assert found.costs["count"].slowdown.blocks == 2
    assert found.costs["count"].alone_p50_ms > 0
    assert 0 <= found.watcher_cpu_share < 1
