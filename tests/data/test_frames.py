"""A folder of frames as people's editors and telephones leave it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_vla.data import episodes, open_image, read_frames, series
from edge_vla.errors import EdgeVLAWarning

LINE = json.dumps({"image": "a.png", "instruction": "nimm die Tasse — 拿杯子"}, ensure_ascii=False)
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("encoding", "ending"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-8-sig", "")])
def test_an_index_may_come_from_windows(encoding: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / "frames.jsonl").write_bytes((LINE + ending).encode(encoding))
    (frame,) = read_frames(tmp_path)
    assert frame.instruction == "nimm die Tasse — 拿杯子"


def test_pictures_may_lie_in_subfolders(tmp_path: Path) -> None:
    """A folder for each episode, and the same file names in each: none is taken for another."""
    lines = list[str]()
    for episode in range(2):
        (tmp_path / f"episode-{episode}").mkdir()
        for step in range(2):
            name = f"episode-{episode}/{step}.png"
            Image.fromarray(PICTURE + np.uint8(16 * episode + step)).save(tmp_path / name)
            lines.append(json.dumps({"image": name, "instruction": "go"}))
    (tmp_path / "frames.jsonl").write_text("\n".join(lines))
    frames = read_frames(tmp_path)
    expected = [json.loads(line)["image"] for line in lines]
    assert episodes(frames) == expected, "without numbers of episodes each is its own"
    assert [one.name for one in series(tmp_path)] == expected
    assert len({frame.sha256() for frame in frames}) == 4


def test_a_turned_telephone_is_said(tmp_path: Path) -> None:
    """Pillow's `open` in OpenVLA's scripts does not turn it either."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(PICTURE).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(PICTURE).save(tmp_path / "upright.png")
    with pytest.warns(EdgeVLAWarning, match=r"EXIF.*as it is stored.*exif_transpose"):
        turned = open_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(turned), PICTURE)
    assert np.array_equal(np.asarray(open_image(tmp_path / "upright.png")), PICTURE)


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_of_8_bits_is_what_upstreams_convert_makes_of_it(mode: str, tmp_path: Path) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / name)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(tmp_path / name)), expected)
