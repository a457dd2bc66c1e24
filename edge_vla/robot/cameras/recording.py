"""Pictures from files in place of a camera: each is looked at once, in order, and after the last one it has `ended`.

For trying a policy without a robot. A picture counts as taken when it is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import FrameError
from edge_vla.robot.cameras.pictures import decoded
from edge_vla.robot.faces import CameraError, Picture

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


class Recording:
    """A `Camera` whose pictures wait for the loop: one stays until it has been acted on."""

    def __init__(self, name: str, pictures: Iterator[NDArray[np.uint8]]) -> None:
        self.name, self._pictures, self._number = name, pictures, 0
        self._image: NDArray[np.uint8] | None = None

    def newest(self, after: int, until: float) -> Picture:  # noqa: ARG002 - the next one is there
        while self._image is None or self._number <= after:
            self._image = next(self._pictures, None)
            if self._image is None:
                raise CameraError("ended", f"{self.name} is over after {self._number} pictures")
            self._number += 1
        return Picture(self._image, time.monotonic(), self._number)

    def close(self) -> None:
        self._pictures = iter(())


def folder(path: Path) -> Recording:
    """A folder of picture files in the order of their names, or one such file. FrameError where there is none."""
    try:
        files = sorted(each for each in path.iterdir() if picture(each)) if path.is_dir() else [path]
    except OSError as error:
        raise FrameError(f"--camera {path} cannot be read: {error.strerror}") from error
    if not files:
        raise FrameError(f"--camera {path} has no picture in it, expected files ending in {', '.join(SUFFIXES)}")
    # a map goes on after a file that cannot be read, where a generator would be over
    return Recording(str(path), map(_read, files))


def picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise CameraError("unreadable", f"{path}: {error.strerror}") from error
