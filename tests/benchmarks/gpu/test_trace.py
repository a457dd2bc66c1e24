"""What a trace adds up: launches and times of one action out of several, without the waits between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.trace import summary
from edge_vla.errors import BackendError


def action(began: float, kernels: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Kernels (name, gap in front, duration) one after another."""
    spans = list[tuple[str, float, float]]()
    for name, gap, lasts in kernels:
        began += gap
        spans.append((name, began, began + lasts))
        began += lasts
    return spans


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 5), st.floats(0.5, 50)), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_one_action_is_the_mean_of_all(kernels: list[tuple[str, float, float]], actions: int) -> None:
    kernels = [(kernels[0][0], 0.0, kernels[0][2]), *kernels[1:]]
    spans = [span for index in range(actions) for span in action(index * 1e5, kernels)]
    found = summary(spans, actions)
    assert found.launches == len(kernels)
    assert found.busy_us == pytest.approx(sum(lasts for _, _, lasts in kernels), abs=1e-3)
    assert found.gaps_us == pytest.approx(sum(gap for _, gap, _ in kernels), abs=1e-3)
    assert found.span_us == pytest.approx(found.busy_us + found.gaps_us)
    assert sum(one.total_us for one in found.kernels) == pytest.approx(found.busy_us, abs=1e-3)
    assert [one.total_us for one in found.kernels] == sorted((one.total_us for one in found.kernels), reverse=True)


def test_kernels_that_overlap_are_busy_once() -> None:
    found = summary([("a", 0.0, 10.0), ("b", 8.0, 12.0)], 1)
    assert (found.busy_us, found.gaps_us) == (12.0, 0.0)
    assert {one.name: one.total_us for one in found.kernels} == {"a": 10.0, "b": 4.0}


def test_a_profiler_that_saw_nothing() -> None:
    with pytest.raises(BackendError, match="recorded no kernel"):
        summary([], 5)
