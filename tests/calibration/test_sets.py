"""Which frames are chosen: in proportion over task and phase, the same again, and written down."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from edge_vla.calibration.sets import choose, phases_by_speed
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import FrameError, UsageError
from edge_vla.openvla import PolicyConfig
from tests.conftest import TINY


@pytest.fixture(scope="module")
def config() -> PolicyConfig:
    return open_checkpoint(TINY).config


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """Six episodes of ten steps: fast, fast … slow, slow, then the hand closes at the last step."""
    from edge_vla.data import read_frames

    folder = tmp_path_factory.mktemp("sets")
    shown = []
    for number in range(60):
        episode, step = divmod(number, 10)
        speed = 0.03 if step < 6 else 0.002
        frame = Frame(
            Path(f"{number:02d}.png"), ("open the drawer", "push the cup")[episode % 2], "random", f"e{episode}", step,
            (speed, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0 if step < 9 else 0.0),
        )  # fmt: skip
        shown.append((frame, synthetic_image(number, 16)))
    write_frames(folder, shown)
    return read_frames(folder)


def test_phases_by_speed(frames: list[Frame], config: PolicyConfig) -> None:
    assert phases_by_speed(frames, config)[:10] == ["free"] * 6 + ["contact"] * 2 + ["gripper"] * 2


def test_every_phase_and_task_gets_its_share(frames: list[Frame], config: PolicyConfig) -> None:
    chosen = choose(frames, config, 30)
    counts = Counter(zip((frame.instruction for frame in chosen.frames), chosen.phases, strict=True))
    whole = Counter(zip((frame.instruction for frame in frames), phases_by_speed(frames, config), strict=True))
    assert set(counts) == set(whole)
    assert all(abs(counts[key] - whole[key] / 2) <= 1 for key in whole)
    assert len(set(chosen.frames)) == 30
    episodes = Counter(frame.episode for frame in chosen.frames)
    assert min(episodes.values()) >= 2


def test_the_same_again_wherever_it_lies(frames: list[Frame], config: PolicyConfig, tmp_path: Path) -> None:
    import shutil

    from edge_vla.data import read_frames

    shutil.copytree(frames[0].image.parent, tmp_path / "copy")
    again = read_frames(tmp_path / "copy")
    assert choose(again, config, 20).sha256 == choose(frames, config, 20).sha256
    assert choose(frames, config, 20, seed=1).sha256 != choose(frames, config, 20).sha256


def test_the_manifest_names_every_frame(frames: list[Frame], config: PolicyConfig) -> None:
    chosen = choose(frames, config, 16)
    manifest = json.loads(chosen.to_json())
    assert len(manifest["frames"]) == 16
    assert len({row["sha256"] for row in manifest["frames"]}) == 16
    assert manifest["sha256"] == chosen.sha256
    assert str(frames[0].image.parent) not in str(manifest)


def test_another_action_is_another_set(frames: list[Frame], config: PolicyConfig) -> None:
    first = dataclasses.replace(frames[0], action=(0.01, *(frames[0].action or ())[1:]))
    assert choose([first, *frames[1:]], config, 60).sha256 != choose(frames, config, 60).sha256


def test_too_few(frames: list[Frame], config: PolicyConfig) -> None:
    with pytest.raises(UsageError, match="at least 8"):
        choose(frames[:7], config, 128)
    with pytest.raises(UsageError, match="at least 8"):
        choose(frames, config, 4)
    assert len(choose(frames, config, 1000).frames) == 60


def test_every_frame_needs_its_action(frames: list[Frame], config: PolicyConfig) -> None:
    with pytest.raises(FrameError, match="no recorded action"):
        choose([dataclasses.replace(frames[0], action=None), *frames[1:]], config, 16)
