"""Recorded actions are looked at before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_vla.bench.plan import Plan, ReferencePlan
from edge_vla.bench.start import Run, start
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import FrameError
from tests.conftest import TINY

SOUND = [(0.01 * (step % 3), 0.0, 0.0, 0.0, 0.0, 0.0, float(step % 2)) for step in range(12)]


def begin(artifact: Path, place: Path, actions: list[tuple[float, ...] | None]) -> Run:
    pictures = [synthetic_image(step, 16) for step in range(len(actions))]
    shown = [Frame(Path(f"{step:02d}.png"), "go", "random", "e", step, one) for step, one in enumerate(actions)]
    write_frames(place / "frames", zip(shown, pictures, strict=True))
    plan = Plan(profile="none", floors=())
    return start([artifact], ReferencePlan(TINY, frames=place / "frames"), plan, place, print)


@pytest.mark.parametrize("action", [(math.nan, *SOUND[0][1:]), SOUND[0][:3]])
def test_an_unsound_action_is_refused(
    action: tuple[float, ...], tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    with pytest.raises(FrameError, match=r"05\.png: expected 7 finite numbers as action"):
        begin(tiny_artifacts[4], tmp_path, [*SOUND[:5], action, *SOUND[6:]])


def test_another_convention_is_refused(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    signed = [(*action[:6], 2 * action[6] - 1) for action in SOUND]
    with pytest.raises(FrameError, match="gripper looks like -1 and 1"):
        begin(tiny_artifacts[4], tmp_path, [*signed])


def test_actions_of_some_frames_only_are_said(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    run = begin(tiny_artifacts[4], tmp_path, [*SOUND, None])
    assert "1 of 13 frames have no recorded action: none is compared with recorded actions" in run.result.notes
