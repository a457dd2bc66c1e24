"""Which data set, and the way to robot units and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import CheckpointError, UsageError
from edge_vla.openvla import Statistics

ONE = {"only": {"action": {"q01": [-1.0, 0.0], "q99": [1.0, 0.0]}}}
TWO = {**ONE, "other": {"action": {"q01": [0.0], "q99": [2.0], "mask": [False]}}}


@given(st.lists(st.floats(-0.99, 0.99), min_size=3, max_size=3))
def test_normalise_inverts_unnormalise(values: list[float]) -> None:
    raw = {"set": {"action": {"q01": [-0.02, 1.0, -3.0], "q99": [0.05, 9.0, -1.0], "mask": [True, True, False]}}}
    statistics = Statistics(raw, "test")["set"]
    normalised = np.array(values)
    assert np.allclose(statistics.normalise(statistics.unnormalise(normalised)), normalised, atol=1e-6)


def test_a_dimension_that_never_moves_stays() -> None:
    assert Statistics(ONE, "test")["only"].unnormalise(np.array([0.5, 0.5])).tolist() == [0.5, 0.0]


def test_missing_mask_means_all() -> None:
    assert Statistics(ONE, "test")["only"].mask.tolist() == [True, True]
    assert Statistics(TWO, "test")["other"].unnormalise(np.array([0.25])).tolist() == [0.25]


def test_key_rules() -> None:
    assert Statistics(ONE, "test").resolve(None) == "only"
    with pytest.raises(UsageError, match=r"only.*other"):
        Statistics(TWO, "test").resolve(None)
    with pytest.raises(UsageError, match=r"'nope'.*only"):
        Statistics(ONE, "test").resolve("nope")


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"q01": [0.0]},
        {"q01": [0.0], "q99": [1.0, 2.0]},
        {"q01": [float("nan")], "q99": [1.0]},
        {"q01": ["a"], "q99": [1.0]},
    ],
)
def test_malformed(action: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Statistics({"set": {"action": action}}, "test")
