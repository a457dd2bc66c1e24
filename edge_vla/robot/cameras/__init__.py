"""Cameras, by what `--camera` gives. Each holds the newest picture only; its face is `edge_vla.robot.faces.Camera`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from edge_vla.errors import UsageError
from edge_vla.robot.faces import Camera

EXPECTED = "expected a number or /dev/video0, http://…, rtsp://…, a picture, a video, a folder of pictures, or demo"


def open_camera(source: str) -> Camera:
    """Starts to bring pictures. UsageError for what is no camera, BackendError where a package is missing."""
    from edge_vla.robot.cameras import recording

    path = Path(source)
    try:
        _ = urlsplit(source).port, path.is_dir()
    except (ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--camera {source}: {why}; {EXPECTED}") from error
    if not source:
        raise UsageError(f"--camera is empty: {EXPECTED}")
    if source.isdigit() or source.startswith("/dev/") or source.startswith(("rtsp://", "rtsps://")):
        from edge_vla.robot.cameras.opencv import OpenCvCamera

        return OpenCvCamera(f"/dev/video{source}" if source.isdigit() else source)
    if source.startswith(("http://", "https://")):
        from edge_vla.robot.cameras.mjpeg import MjpegCamera

        return MjpegCamera(source)
    if path.is_dir() or (path.is_file() and recording.picture(path)):
        return recording.folder(path)
    if path.is_file():
        from edge_vla.robot.cameras.opencv import video

        return video(path)
    raise UsageError(f"--camera {source}: {'no such file; ' if '/' in source else ''}{EXPECTED}")
