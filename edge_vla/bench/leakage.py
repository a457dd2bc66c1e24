"""Which of the frames an artifact was calibrated on: agreement on those would flatter it.

The manifest holds the hash of the whole calibration set, `evidence/calibration.json` the hash of each of its frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.calibration.sequences import action_tokens
from edge_vla.data import Frame
from edge_vla.errors import ArtifactError, FrameError, UsageError
from edge_vla.openvla import PolicyConfig

LIST = "calibration.json"


def calibration_frames_among(artifact: Artifact, frames: Sequence[Frame], config: PolicyConfig) -> int | None:
    """How many of `frames` the artifact was calibrated on; None where it was calibrated on none.

    Raises ArtifactError if the list beside the artifact is missing or not the one that its manifest means.
    """
    told = artifact.manifest.recipe.get("calibration")
    if not isinstance(told, dict):
        return None
    path = artifact.directory / EVIDENCE / LIST
    try:
        hashes = [frame["sha256"] for frame in json.loads(path.read_text(encoding="utf-8"))["frames"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is needed to tell calibration frames from others: {error}") from error
    if hashlib.sha256("\n".join(hashes).encode()).hexdigest() != told.get("sha256"):
        raise ArtifactError(f"{path} is not the list of frames that {artifact.directory} was calibrated on")
    known = set(hashes)
    return sum(_asked(frame, config) in known for frame in frames)


def _asked(frame: Frame, config: PolicyConfig) -> str | None:
    """A frame's hash as a calibration set has it; None for one that nothing could be calibrated on."""
    try:
        return hashlib.sha256(f"{frame.sha256()} {action_tokens(frame, config)}".encode()).hexdigest()
    except (FrameError, UsageError):
        return None
