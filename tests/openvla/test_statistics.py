"""Which data set, and the way to robot units and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import CheckpointError, UsageError
from edge_vla.openvla import Statistics
from tests.checkpoint.upstream import unnormalised

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


SOUND = {"q01": [-0.5, 0.0, -2.0], "q99": [0.5, 4.0, 2.0], "mask": [True, True, False]}
NORMALISED = np.array([0.25, -1.0, 0.75])

# What stands beside a sound set, and what is said where it is asked for. None: it cannot be.
BROKEN: list[tuple[object, str | None]] = [
    ({"action": {"q99": [1.0]}}, "q01"),
    ({"action": {**SOUND, "q01": [float("nan"), 0.0, 0.0]}}, "finite"),
    ({"action": {**SOUND, "q99": [None, 1.0, 1.0]}}, "finite"),
    ({"action": {**SOUND, "mask": [True]}}, "as long as each other"),
    ({"action": {**SOUND, "mask": ["yes"] * 3}}, "true and false"),
    ({"action": {**SOUND, "mask": None}}, "true and false"),
    ({"action": []}, "'action'"),
    ({"num_transitions": 5}, "'action'"),
    ({}, "'action'"),
    (2135463, None),
    ("2024-06-13", None),
    (None, None),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN)
@pytest.mark.parametrize("first", [True, False])
def test_a_broken_set_hurts_nobody_but_who_asks_for_it(broken: object, reason: str | None, first: bool) -> None:
    """OpenVLA reads only the set that is asked for."""
    sets: dict[str, object] = {"sound": {"action": SOUND}, "broken": broken}
    statistics = Statistics(dict(reversed(sets.items())) if first else sets, "file.json")
    assert list(statistics) == list(statistics.raw) == ["sound"]
    assert statistics.resolve("sound") == "sound"
    expected = unnormalised(NORMALISED, SOUND)
    assert np.array_equal(statistics["sound"].unnormalise(NORMALISED), expected)
    if reason is None:
        assert (list(statistics.strays), statistics.resolve(None)) == (["broken"], "sound")
        with pytest.raises(UsageError, match=r"unknown unnorm_key 'broken'.*sound"):
            statistics.resolve("broken")
        return
    assert list(statistics.unsound) == ["broken"]
    with pytest.raises(CheckpointError, match=f"file.json, data set 'broken'.*{reason}.*--statistics"):
        statistics.resolve("broken")
    with pytest.raises(UsageError, match="knows 2 data sets"):
        statistics.resolve(None)


@pytest.mark.parametrize(
    "mask", [[1, 1, 0], [1.0, 1.0, 0.0], [True, 1, 0], [0, 0, 0], [2, -1, 0], [0.5, float("nan"), 0]]
)
def test_a_mask_of_numbers_counts_as_numpy_counts_it(mask: list[float]) -> None:
    action = {**SOUND, "mask": mask}
    statistics = Statistics({"set": {"action": action}}, "file.json")
    assert np.array_equal(statistics["set"].unnormalise(NORMALISED), unnormalised(NORMALISED, action))
    again = Statistics(json.loads(json.dumps(statistics.raw, allow_nan=False)), "manifest")
    assert np.array_equal(again["set"].mask, statistics["set"].mask)


def test_numbers_that_nothing_reads_may_be_missing_or_not_finite() -> None:
    """A `std` that is NaN reaches no action, and JSON cannot hold it."""
    action = {**SOUND, "std": [float("nan")] * 3, "max": [float("inf")] * 3, "mean": [0.0] * 3}
    statistics = Statistics({"set": {"action": action}}, "file.json")
    assert statistics.raw == {"set": {"action": {**SOUND, "mean": [0.0] * 3}}}
    json.dumps(statistics.raw, allow_nan=False)


def test_sound_statistics_are_kept_to_the_letter() -> None:
    """They are hashed into artifacts."""
    for raw in (ONE, TWO):
        assert json.dumps(Statistics(raw, "test").raw) == json.dumps(raw)


def test_without_any_sound_set_nothing_opens() -> None:
    with pytest.raises(CheckpointError, match=r"data set 'a'.*q01"):
        Statistics({"count": 3, "a": {"action": {}}}, "file.json")
    with pytest.raises(CheckpointError, match=r"data set 'count'.*'action'"):
        Statistics({"count": 3}, "file.json")
