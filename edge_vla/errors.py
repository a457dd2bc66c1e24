"""Every error a user can cause, and the exit code that tells a script which kind it was.

    EdgeVLAError
    ├── UsageError          2   the command or call asks for something that does not exist or does not fit
    ├── BackendError        3   this machine or environment cannot do what was asked
    │   └── DeviceLostError 3   the GPU failed under this process, which must be started again
    ├── CheckpointError     4   the source weights, their configuration, statistics or adapter are not sound
    ├── FrameError          4   an image or a folder of frames is not readable as such
    ├── ResourceError       5   disk, memory or permission
    ├── ArtifactError       6   an artifact is damaged, incomplete, of another version, or not what it claims
    └── NumericError        6   a number on the way to an action was not finite

A message says what was got, what was expected, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BackendError",
    "CheckpointError",
    "DeviceLostError",
    "EdgeVLAError",
    "EdgeVLAWarning",
    "FrameError",
    "NumericError",
    "ResourceError",
    "UsageError",
]


class EdgeVLAError(Exception):
    """Base of all errors below; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(EdgeVLAError):
    """An option, key or combination that does not exist or does not fit."""

    exit_code = 2


class BackendError(EdgeVLAError):
    """A kernel, runtime or package that this machine lacks."""

    exit_code = 3


class DeviceLostError(BackendError):
    """CUDA failed in a way that outlives the call: nothing in this process can use the device again."""


class CheckpointError(EdgeVLAError):
    """A source checkpoint or adapter that cannot be trusted as it is."""

    exit_code = 4


class FrameError(EdgeVLAError):
    """An image, or a folder of frames, that cannot be read."""

    exit_code = 4


class ResourceError(EdgeVLAError):
    """Disk, memory or permission."""

    exit_code = 5


class ArtifactError(EdgeVLAError):
    """An artifact that is damaged, incomplete, or of another version."""

    exit_code = 6


class NumericError(EdgeVLAError):
    """A non-finite number on the way to an action: no action is returned."""

    exit_code = 6


class EdgeVLAWarning(UserWarning):
    """Something was answered although a careful user would want to know."""
