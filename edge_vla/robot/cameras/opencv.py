"""Cameras on this machine (V4L2), RTSP streams and video files, through OpenCV, found when one is chosen.

A thread takes each picture out of the driver, so that what the loop looks at is never an old one that waited in a
queue. Opens again by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import BackendError, FrameError
from edge_vla.robot.cameras.mjpeg import without_password
from edge_vla.robot.cameras.newest import Newest
from edge_vla.robot.cameras.recording import Recording
from edge_vla.robot.device import permission
from edge_vla.robot.faces import CameraError

OPEN_MS: Final = 5000  # of an RTSP stream
READ_MS: Final = 2000
AGAIN_S: Final = (0.2, 1.0)
REMEDY: Final = "pip install 'edge-vla[act]', or on a Jetson: sudo apt install python3-opencv"


def opencv() -> ModuleType:
    """The module. BackendError where it is not installed, or does not load."""
    try:
        import cv2
    except ImportError as error:
        raise BackendError(f"this --camera needs OpenCV ({error}): {REMEDY}") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what failed is said once, in our words
    module: ModuleType = cv2
    return module


class OpenCvCamera(Newest):
    """A device's path, or an `rtsp://` address."""

    def __init__(self, source: str) -> None:
        self._cv2, self._source = opencv(), source
        device = source.startswith("/dev/")
        super().__init__(source if device else without_password(source)[0])
        if device:
            check(source)
        self._device, self._closed = device, threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {self.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(READ_MS / 1e3)

    def _run(self) -> None:
        pause = AGAIN_S[0]
        while not self._closed.is_set():
            before = self.number
            try:
                self._stream()
            except CameraError as error:
                self.fail(error)
            pause = AGAIN_S[0] if self.number > before else min(2 * pause, AGAIN_S[1])
            self._closed.wait(pause)

    def _stream(self) -> None:
        if self._device:
            check(self._source)
        capture = self._open()
        try:
            if not capture.isOpened():
                raise CameraError("unplugged", f"{self.name} cannot be opened: {self._remedy()}")
            while not self._closed.is_set():
                good, image = capture.read()
                if not good:
                    raise CameraError("unplugged", f"{self.name} brings no pictures any more: {self._remedy()}")
                self.put(self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB))
        finally:
            capture.release()

    def _open(self) -> Any:
        cv2 = self._cv2
        if not self._device:
            times = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
            return cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, times)
        capture = cv2.VideoCapture(self._source, cv2.CAP_V4L2)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def _remedy(self) -> str:
        if self._device:
            return f"check its cable, and what else uses it: fuser {self._source}"
        return "check its power, its cable and the address"


def check(device: str) -> None:
    """CameraError, with what helps, for a device that is not there or that we may not open."""
    path = Path(device)
    if not path.exists():
        raise CameraError("unplugged", f"{device} is not there: plug it in, and look it up with: ls /dev/video*")
    if not os.access(device, os.R_OK | os.W_OK):
        raise CameraError("unplugged", f"{device}: no permission {permission(path)}")


def video(path: Path) -> Recording:
    """A video file, every picture once. FrameError where it is none."""
    cv2 = opencv()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise FrameError(f"--camera {path} is neither a picture nor a video that OpenCV can read")

    def pictures() -> Iterator[NDArray[np.uint8]]:
        try:
            while True:
                good, image = capture.read()
                if not good:
                    return
                yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    return Recording(str(path), pictures())
