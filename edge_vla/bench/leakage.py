"""Calibration leakage: evaluation frames that an artifact was calibrated on, where its agreement is flattered.

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


def calibration_leakage(artifact: Artifact, frames: Sequence[Frame], config: PolicyConfig) -> int | None:
    """How many of `frames` the artifact was calibrated on; None if it was made without calibration frames.

    Raises ArtifactError if the list beside the artifact is missing or not the one that its manifest names.
    """
    calibration = artifact.manifest.recipe.calibration
    if calibration is None:
        return None
    path = artifact.directory / EVIDENCE / LIST
    try:
        hashes = [frame["sha256"] for frame in json.loads(path.read_text(encoding="utf-8"))["frames"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"cannot read {path}, which lists the calibration frames ({error}): export again"
        ) from error
    if hashlib.sha256("\n".join(hashes).encode()).hexdigest() != calibration.sha256:
        raise ArtifactError(
            f"{path} lists other frames than those {artifact.directory} was calibrated on: export again"
        )
    known = set(hashes)
    return sum(_calibration_hash(frame, config) in known for frame in frames)


def _calibration_hash(frame: Frame, config: PolicyConfig) -> str | None:
    """A frame's hash as in a calibration set; None for one without an action to calibrate on."""
    try:
        return hashlib.sha256(f"{frame.sha256()} {action_tokens(frame, config)}".encode()).hexdigest()
    except (FrameError, UsageError):
        return None
