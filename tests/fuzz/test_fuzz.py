"""A few hundred wrong calls, and in the slow rung thousands: no traceback, no untyped error, no word too many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_vla.data import Frame, synthetic_image, write_frames
from tests.fuzz.calls import Place, fuzz


def furnish(place: Place) -> Place:
    """A picture, and a folder of two frames, to be named by mistake."""
    place.directory.mkdir()
    synthetic_image(0, 28).save(place.directory / "picture.png")
    frames = [(Frame(Path(f"{i}.png"), "go", "random"), synthetic_image(i, 28)) for i in range(2)]
    write_frames(place.directory / "frames", frames)
    return place


@pytest.fixture
def place(tiny_artifacts: Mapping[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return furnish(Place(tiny_artifacts[4], tmp_path / "here"))


def test_wrong_calls(place: Place) -> None:
    assert fuzz(place, seed=1, commands=60, calls=120) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_wrong_calls(place: Place) -> None:
    assert fuzz(place, seed=2, commands=2500, calls=2500) == []
