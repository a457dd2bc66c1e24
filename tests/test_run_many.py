"""`run --images` and `act_many`: one load, and for each picture what `act` gives for it alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge_vla
from edge_vla.data import Frame, series, synthetic_image, write_frames
from edge_vla.errors import UsageError
from tests.test_cli import call

WORDS = "open the drawer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, by name in another order than they were written."""
    (tmp_path / "pictures").mkdir()
    for name in (2, 0, 1):
        synthetic_image(name, 28).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder(folder: Path, tiny_artifacts: Mapping[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", str(tiny_artifacts[8]), "--images", str(folder), "--instruction", WORDS) == 0
    found = lines(capsys)
    assert [line["image"] for line in found] == ["0.png", "1.png", "2.png"]
    with edge_vla.load(tiny_artifacts[8]) as policy:
        for line in found:
            alone = policy.act(Image.open(folder / str(line["image"])), WORDS)
            assert line["tokens"] == list(alone.tokens)
            assert line["action"] == alone.values.tolist()


def test_recorded_frames_bring_their_words(
    tmp_path: Path, tiny_artifacts: Mapping[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["go left", "go right"]
    frames = [Frame(Path(f"{i}.png"), words[i], "random") for i in range(2)]
    write_frames(tmp_path / "frames", [(frame, synthetic_image(i, 28)) for i, frame in enumerate(frames)])
    ask = ("run", str(tiny_artifacts[8]), "--images", str(tmp_path / "frames"))
    assert call(*ask) == 0
    assert [line["instruction"] for line in lines(capsys)] == words
    assert call(*ask, "--instruction", WORDS) == 0
    assert [line["instruction"] for line in lines(capsys)] == [WORDS, WORDS]


def test_a_moving_picture(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (20, 16), colour) for colour in ("red", "lime", "blue")]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:])
    found = [*series(tmp_path / "clip.gif")]
    assert [one.name for one in found] == ["clip.gif#0", "clip.gif#1", "clip.gif#2"]
    assert [one.image.getpixel((3, 3)) for one in found] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_video(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for level in (20, 120, 220):
        writer.write(np.full((48, 64, 3), (level, 0, 255 - level), dtype=np.uint8))
    writer.release()
    for one, level in zip(series(path), (20, 120, 220), strict=True):
        assert np.abs(np.asarray(one.image, dtype=int)[24, 32] - (255 - level, 0, level)).max() < 12, "RGB, not BGR"


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ((), 2, "one of --image FILE and --images"),
        (("--image", "{folder}/0.png", "--images", "{folder}", "--instruction", WORDS), 2, "one of --image"),
        (("--images", "{folder}"), 2, "give --instruction"),
        (("--image", "{folder}/0.png"), 2, "needs --instruction"),
        (("--images", "{folder}s"), 2, "did you mean {folder}?"),
        (("--images", "{folder}/notes.txt", "--instruction", WORDS), 3, "pip install 'edge-vla[act]'"),
        (("--images", "{folder}/empty", "--instruction", WORDS), 4, "holds no pictures"),
    ],
)
def test_mistakes(
    options: tuple[str, ...],
    code: int,
    word: str,
    folder: Path,
    tiny_artifacts: Mapping[int, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (folder / "empty").mkdir()
    given = [option.format(folder=folder) for option in options]
    assert call("run", str(tiny_artifacts[8]), *given) == code
    said = capsys.readouterr()
    assert not said.out
    assert word.format(folder=folder) in said.err


def test_act_many(folder: Path, tiny_artifacts: Mapping[int, Path]) -> None:
    paths = sorted(folder.glob("*.png"))
    with edge_vla.load(tiny_artifacts[8]) as policy:
        one_by_one = [policy.act(Image.open(path), WORDS).tokens for path in paths]
        assert [action.tokens for action in policy.act_many(paths, WORDS)] == one_by_one
        pictures = (Image.open(path) for path in paths)
        assert [action.tokens for action in policy.act_many(pictures, [WORDS] * 3)] == one_by_one
        with pytest.raises(UsageError, match="fewer instructions than images"):
            list(policy.act_many(paths, [WORDS] * 2))
