"""Many pictures in a row: recorded frames, a folder of pictures, or a video. Each is opened when it is its turn.

A moving picture that Pillow reads (GIF, APNG, WebP) needs nothing else; any other video needs OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageSequence

from edge_vla.data.frames import BROKEN, INDEX, Frame, names, open_image, read_folder
from edge_vla.data.lerobot import find_dataset, read_lerobot
from edge_vla.errors import BackendError, FrameError, UsageError
from edge_vla.openvla.image import as_rgb
from edge_vla.suggestions import no_such

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
MOVING: Final = frozenset({".gif", ".apng"})
REMEDY: Final = "pip install 'edge-vla[act]', or save its frames as pictures in a folder"


@dataclass(frozen=True)
class Shown:
    """A picture by its name, and what its recording says of it."""

    name: str
    image: Image.Image
    instruction: str | None = None
    unnorm_key: str | None = None


def series(path: Path) -> Iterator[Shown]:
    """The pictures of a folder (in the order of its frames.jsonl, else by name), a LeRobot dataset or a video.

    UsageError where nothing is there, FrameError for a picture that cannot be read, BackendError without a decoder.
    """
    if (dataset := find_dataset(path)) is not None:
        return _recorded(read_lerobot(*dataset))
    if (path / INDEX).is_file():
        return _recorded(read_folder(path))
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
        if not found:
            raise FrameError(f"{path} holds no pictures: expected {', '.join(sorted(SUFFIXES))}, or a {INDEX}")
        return (Shown(one.name, open_image(one)) for one in found)
    if not path.is_file():
        raise UsageError(f"--images {no_such(path, 'folder or video')}")
    return _moving(path) if path.suffix.lower() in SUFFIXES | MOVING else _video(path)


def _recorded(frames: Sequence[Frame]) -> Iterator[Shown]:
    for frame, name in zip(frames, names(frames), strict=True):
        yield Shown(name, frame.open(), frame.instruction, frame.unnorm_key)


def _moving(path: Path) -> Iterator[Shown]:
    try:
        with Image.open(path) as opened:
            for number, image in enumerate(ImageSequence.Iterator(opened)):
                yield Shown(f"{path.name}#{number}", as_rgb(image))
    except BROKEN as error:
        raise FrameError(f"{path} is not a picture that Pillow can read: {error}") from error


def _video(path: Path) -> Iterator[Shown]:
    try:
        import cv2
    except ImportError as error:
        raise BackendError(f"{path}: a video needs OpenCV ({error}): {REMEDY}") from error
    capture: Any = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            sound, image = capture.read()
            if not sound:
                break
            yield Shown(f"{path.name}#{number}", Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
            number += 1
    finally:
        capture.release()
    if not number:
        raise FrameError(f"{path} is not a video that OpenCV can read: convert it to MP4 with H.264")
