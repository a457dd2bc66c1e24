"""Frames on disk: a folder of images and a `frames.jsonl` that says what was asked and done at each.

One JSON object a line: `image` (a file in the folder or below it), `instruction`, and where known `unnorm_key`,
`episode`, `step`, `action` (recorded, robot units). Knows nothing of policies, nor of other ways to store frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla import typed_json
from edge_vla.errors import EdgeVLAWarning, FrameError
from edge_vla.files import write_whole
from edge_vla.openvla.image import as_rgb

INDEX = "frames.jsonl"
ORIENTATION = 0x0112  # the EXIF entry; 1 is upright
TURNED = (
    "a picture's EXIF says that it is to be turned or mirrored: it is read as it is stored, as OpenVLA's scripts do "
    "(Pillow's open); if training saw it upright, save it with ImageOps.exif_transpose"
)
# What Pillow's readers raise on a damaged file, beside their own errors.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)


@dataclass(frozen=True)
class Frame:
    """An image and an instruction, and what is known of the recording."""

    image: Path
    instruction: str
    unnorm_key: str | None = None
    episode: str | None = None
    step: int | None = None
    action: tuple[float, ...] | None = None

    def open(self) -> Image.Image:
        return open_image(self.image)

    def sha256(self, instruction: str | None = None) -> str:
        """Of the image's size and pixels, however they are stored, and the instruction as it was typed, or another."""
        image, words = self.open(), self.instruction if instruction is None else instruction
        digest = hashlib.sha256(f"{image.width} {image.height} {words}\0".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One line of the index."""

    image: str
    instruction: str
    unnorm_key: str | None = None
    episode: str | int | None = None
    step: int | None = None
    action: tuple[float, ...] | None = None


def open_image(path: Path, content: BinaryIO | None = None) -> Image.Image:
    """An image file, or its `content`, as RGB.

    Raises FrameError for a missing file or one that is no image of 8 bits a channel.
    """
    try:
        with Image.open(content or path) as image:
            image.load()
            if image.getexif().get(ORIENTATION, 1) != 1:
                warnings.warn(TURNED, EdgeVLAWarning, 2)
            return as_rgb(image)
    except FileNotFoundError as error:
        raise FrameError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise FrameError(f"{path} is a folder, not an image") from error
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from error
    except (*BROKEN, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file, not what is in it
            raise FrameError(f"{path} cannot be read: {error.strerror}") from error
        raise FrameError(f"{path} is not an image that Pillow can read: {error}; save it as PNG again") from error


def read_folder(directory: Path) -> list[Frame]:
    """All frames of a folder, in the order of its index."""
    path = directory / INDEX
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # editors of Windows put a mark before
    except FileNotFoundError as error:
        raise FrameError(f"{path} is missing: expected a folder of images with a {INDEX}") from error
    except OSError as error:
        raise FrameError(f"{path} cannot be read ({error.strerror}): expected a folder with a {INDEX}") from error
    except UnicodeDecodeError as error:
        raise FrameError(f"{path} is not UTF-8 text: {error}") from error
    frames = {number: _frame(directory, number, line) for number, line in enumerate(lines, start=1) if line.strip()}
    if not frames:
        raise FrameError(f"{path} lists no frames: expected one JSON object a line")
    _require_once(path, frames)
    return list(frames.values())


def write_frames(directory: Path, frames: Iterable[tuple[Frame, Image.Image]]) -> None:
    """Write images and index; a frame's `image` names its file in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for frame, image in frames:
        image.save(directory / frame.image.name)
        entry = {
            "image": frame.image.name,
            "instruction": frame.instruction,
            "unnorm_key": frame.unnorm_key,
            "episode": frame.episode,
            "step": frame.step,
            "action": frame.action,
        }
        lines.append(json.dumps({key: value for key, value in entry.items() if value is not None}))
    write_whole(directory / INDEX, "\n".join(lines) + "\n")


def synthetic_image(seed: int, size: int) -> Image.Image:
    """Smooth coloured noise, seeded, where no camera image is at hand."""
    coarse: NDArray[Any] = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def names(frames: Sequence[Frame]) -> list[str]:
    """Each picture's path below the folder that holds them all: its file's name where there are no subfolders."""
    if not frames:
        return []
    folder = os.path.commonpath([frame.image.parent for frame in frames])
    return [frame.image.relative_to(folder).as_posix() for frame in frames]


def episodes(frames: Sequence[Frame]) -> list[str]:
    """The episode of each frame; a frame that names none is an episode of its own."""
    own = names(frames)
    return [name if frame.episode is None else frame.episode for frame, name in zip(frames, own, strict=True)]


def _require_once(path: Path, frames: Mapping[int, Frame]) -> None:
    """FrameError if an image and instruction, or a step of an episode, stands in the index twice."""
    first_line: dict[tuple[object, ...], int] = {}
    for line, frame in frames.items():
        image = frame.image.relative_to(path.parent).as_posix()
        marks: list[tuple[object, ...]] = [("image and instruction", image, frame.instruction)]
        if frame.episode is not None and frame.step is not None:
            marks.append(("episode and step", frame.episode, frame.step))
        for mark in marks:
            if (first := first_line.setdefault(mark, line)) != line:
                raise FrameError(f"{path}, line {line}: {mark[0]} are those of line {first}: {mark[1]!r}, {mark[2]!r}")


def _frame(directory: Path, number: int, line: str) -> Frame:
    try:
        entry = typed_json.from_json(Entry, json.loads(line), "frame", ignore_unknown=True)
        image = PurePosixPath(entry.image)
        if not image.name or image.is_absolute() or ".." in image.parts:
            raise ValueError(f"image must be a file in the folder or below it, got {entry.image!r:.80}")
    except (ValueError, RecursionError) as error:
        raise FrameError(
            f"{directory / INDEX}, line {number}: {error}: expected an object with 'image' and 'instruction'"
        ) from error
    episode = None if entry.episode is None else str(entry.episode)
    return Frame(directory / entry.image, entry.instruction, entry.unnorm_key, episode, entry.step, entry.action)
