"""`export --preprocess`: a decoder is fitted to, and its golden frame is, what a script shows the policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from edge_vla.data import Frame
from edge_vla.errors import UsageError
from edge_vla.export import Recipe, export
from edge_vla.openvla import evaluation
from tests.conftest import TINY
from tests.export.crash import tiny_frames

RECIPE = Recipe(method="gptq", calibration_frames=12)


def stored(frame: Frame, folder: Path, size: int) -> Frame:
    """The frame with the picture that LIBERO's script makes of it, as a file."""
    path = folder / frame.image.name
    evaluation.prepare(frame.open(), "libero", size).save(path)
    return dataclasses.replace(frame, image=path)


def test_it_is_the_export_from_pictures_prepared_before(tmp_path: Path) -> None:
    frames = tiny_frames(tmp_path / "frames")
    named = export(TINY, tmp_path / "named", RECIPE, frames=frames, preprocess="libero")
    folder = tmp_path / "prepared"
    folder.mkdir()
    size = named.manifest.config.image.size
    by_hand = export(TINY, tmp_path / "by-hand", RECIPE, frames=[stored(frame, folder, size) for frame in frames])
    plain = export(TINY, tmp_path / "plain", RECIPE, frames=frames)
    assert named.manifest.files == by_hand.manifest.files
    assert named.manifest.files != plain.manifest.files
    (golden,) = named.manifest.golden
    with Image.open(named.directory / golden.image) as picture:
        assert picture.size == (size, size)


def test_an_unknown_script_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from edge_vla.commands.export import export as command

    with pytest.raises(UsageError, match="libero"):
        command("random:tiny", tmp_path / "out", preprocess="robosuite")
