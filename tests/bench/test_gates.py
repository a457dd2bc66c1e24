"""Gates on rows made by hand: green, red, and undecided where the interval lies on both sides."""

from __future__ import annotations

from typing import Any

import pytest

from edge_vla.bench import gates


def share(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def judged(bits: float = 4.125, **agreement: Any) -> dict[str, bool | None]:
    perfect = share(1.0, 1.0, 1.0)
    sound: dict[str, Any] = {
        "teacher_forced": perfect,
        "free_running": perfect,
        "margins": {"floor": 0.1, "high_margin": {"positions": 1000, "flips": 0}},
        "gripper": {"flips": share(0.0, 0.0, 0.01)},
        "invalid": {"candidate": 0.0, "reference": 0.0},
        "units_off": 0.0,
    }
    row = {"name": "it", "artifact": {"bits_per_weight": bits}, "agreement": {**sound, **agreement}}
    return {gate["name"]: gate["passed"] for gate in gates.judge({"floors": {gates.FLOOR: sound}, "candidates": [row]})}


@pytest.mark.parametrize(("low", "high", "passed"), [(0.80, 0.90, True), (0.70, 0.80, None), (0.60, 0.70, False)])
def test_a_share_is_judged_by_its_interval(low: float, high: float, passed: bool | None) -> None:
    assert judged(teacher_forced=share((low + high) / 2, low, high))["tokens"] is passed


def test_rare_events() -> None:
    assert judged(gripper={"flips": share(0.01, 0.0, 0.2)})["gripper"] is True
    assert judged(gripper={"flips": share(0.04, 0.01, 0.2)})["gripper"] is None
    assert judged(gripper={"flips": share(0.3, 0.2, 0.4)})["gripper"] is False
    assert judged(margins={"floor": 0.1, "high_margin": {"positions": 100, "flips": 4}})["clear leads"] is False


def test_more_bits_may_stray_less() -> None:
    near = {"teacher_forced": share(0.9, 0.88, 0.92)}
    assert judged(4.125, **near)["tokens"] is True
    assert judged(8.05, **near)["tokens"] is False


def test_units_and_invalid_tokens_allow_nothing() -> None:
    found = judged(units_off=1e-9, invalid={"candidate": 0.001, "reference": 0.0})
    assert found["units"] is False
    assert found["action tokens"] is False


def test_red_comes_first_and_a_side_that_broke_is_red() -> None:
    rows = gates.judge({"floors": {}, "candidates": [{"name": "broken", "failed": "it stopped"}]})
    assert [(row["name"], row["passed"], row["why"]) for row in rows] == [("measured", False, "it stopped")]
