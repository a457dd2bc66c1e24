"""Frames that an artifact was calibrated on are found among the evaluation frames, by content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.demo_policy import episodes
from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.bench.leakage import LIST, calibration_leakage
from edge_vla.calibration.sets import choose
from edge_vla.data import Frame
from edge_vla.demo import BASE
from edge_vla.errors import ArtifactError
from edge_vla.export import Recipe, export


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Frame], list[Frame]]:
    """An artifact, frames it was calibrated on (of another folder), and frames of other episodes."""
    root = tmp_path_factory.mktemp("leakage")
    used = episodes.frames("world1-expert", "calibration", root / "used", episodes=2)
    other = episodes.frames("world1-expert", "evaluation", root / "other", episodes=2)
    recipe = Recipe(bits=4, method="gptq", calibration_frames=8)
    artifact = export(BASE, root / "gptq", recipe, frames=used)
    again = episodes.frames("world1-expert", "calibration", root / "again", episodes=2)
    return artifact, again, other


def test_they_are_counted_wherever_they_lie(calibrated: tuple[Artifact, list[Frame], list[Frame]]) -> None:
    artifact, used, other = calibrated
    config = artifact.manifest.config
    assert calibration_leakage(artifact, [*used, *other], config) == 8
    assert calibration_leakage(artifact, other, config) == 0


def test_another_spelling_hides_nothing(calibrated: tuple[Artifact, list[Frame], list[Frame]]) -> None:
    """Prompts are in lower case, so a frame with another is the same question."""
    artifact, used, _ = calibrated
    shouted = [replace(frame, instruction=frame.instruction.upper()) for frame in used]
    assert calibration_leakage(artifact, shouted, artifact.manifest.config) == 8


def test_nor_does_a_capital_in_the_calibration_set(
    calibrated: tuple[Artifact, list[Frame], list[Frame]],
) -> None:
    """The list's own hashes are of instructions as they were typed: those of old artifacts stay as they are."""
    artifact, used, _ = calibrated
    config = artifact.manifest.config
    typed = [replace(frame, instruction=frame.instruction.capitalize()) for frame in used]
    chosen, plain = choose(typed, config, 8), choose(used, config, 8)
    assert chosen.sha256 != plain.sha256
    assert chosen.asked == plain.asked == plain.hashes


def test_a_list_that_is_missing_or_another_is_refused(
    calibrated: tuple[Artifact, list[Frame], list[Frame]], tmp_path: Path
) -> None:
    artifact, used, _ = calibrated
    copy = Artifact(Path(shutil.copytree(artifact.directory, tmp_path / "copy")))
    path = copy.directory / EVIDENCE / LIST
    content = json.loads(path.read_text())
    content["frames"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="lists other frames"):
        calibration_leakage(copy, used, copy.manifest.config)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*export again"):
        calibration_leakage(copy, used, copy.manifest.config)
