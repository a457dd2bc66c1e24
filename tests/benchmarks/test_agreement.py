"""Agreement arithmetic: known answers, and intervals that cover at about their nominal rate."""

from __future__ import annotations

import numpy as np
import pytest

from edge_vla.benchmarks.agreement import Side, compare, interval, margin_floor
from edge_vla.openvla import ActionTokens
from edge_vla.spec import ActionSpec

TOKENS = ActionTokens(ActionSpec(bins=64, end=384))


def side(free: object, forced: object | None = None, margin: float = 1.0) -> Side:
    tokens = np.array(free, dtype=np.int64)
    again = tokens if forced is None else np.array(forced, dtype=np.int64)
    return Side(tokens, again, np.full(tokens.shape, margin), again)


def test_a_policy_agrees_with_itself() -> None:
    answers = side([[330, 340], [350, 360]])
    result = compare(answers, answers, ["a", "b"], TOKENS, floor=0.5)
    for key in ("teacher_forced", "free_running", "exact_tokens", "exact_action"):
        assert result[key] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert result["high_margin_flips"] == result["near_tie_flips"] == 0
    assert result["first_divergence"] == [0, 0, 2]
    assert result["bins_apart"]["max"] == 0


def test_known_differences() -> None:
    reference = side([[330, 340], [350, 360], [320, 383], [370, 371]])
    candidate = side([[330, 341], [351, 360], [321, 383], [370, 371]])
    result = compare(reference, candidate, ["a", "a", "b", "b"], TOKENS, floor=0.5)
    assert result["exact_tokens"]["mean"] == 0.25
    assert result["exact_action"]["mean"] == 0.5, "the two lowest ids decode to the same action"
    assert result["free_running_by_dimension"] == [0.5, 0.75]
    assert result["first_divergence"] == [2, 1, 1]
    assert result["high_margin_flips"] == 3
    assert result["bins_apart"]["max"] == 1


def test_near_ties_are_told_from_flips() -> None:
    reference, candidate = side([[330, 340]], margin=0.1), side([[330, 341]])
    result = compare(reference, candidate, ["a"], TOKENS, floor=0.5)
    assert (result["high_margin_flips"], result["near_tie_flips"]) == (0, 1)


def test_floor_counts_a_flip_as_a_lead_that_crossed_zero() -> None:
    reference = side([[330, 340]], margin=0.2)
    shaken = Side(reference.free, np.array([[330, 341]]), np.array([[0.2, 0.3]]), reference.free)
    assert margin_floor(reference, shaken) == pytest.approx(0.5, rel=0.02)


def test_would_be_invalid() -> None:
    reference = side([[330, 340]])
    candidate = Side(reference.free, reference.forced, reference.forced_margins, np.array([[2, 384]]))
    result = compare(reference, candidate, ["a"], TOKENS)
    assert result["would_be_invalid"] == 1.0
    assert result["reference_would_be_invalid"] == 0.0


def test_interval_covers_and_widens_with_clustering() -> None:
    """In simulation the 95 % interval holds the truth about as often as it says, also when episodes correlate."""
    rng = np.random.default_rng(1)
    covered, rounds, episodes, frames = 0, 200, 60, 10
    names = [str(i) for i in range(episodes) for _ in range(frames)]
    for _ in range(rounds):
        chance = rng.beta(4, 1, episodes)  # mean 0.8
        values = (rng.random((episodes, frames)) < chance[:, None]).astype(float).ravel()
        found = interval(values, names)
        covered += found["low"] <= 0.8 <= found["high"]
    assert 0.89 <= covered / rounds <= 0.99
    alone = interval(values, [str(i) for i in range(len(values))])
    assert found["high"] - found["low"] > 1.5 * (alone["high"] - alone["low"])
