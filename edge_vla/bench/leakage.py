"""Calibration leakage: evaluation frames that an artifact was calibrated on, where its agreement is flattered.

The manifest holds the hash of the whole calibration set, `evidence/calibration.json` the hash of each of its frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.calibration.sequences import action_tokens
from edge_vla.calibration.sets import frame_hash
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
        listed = json.loads(path.read_text(encoding="utf-8"))["frames"]
        hashes = [frame["sha256"] for frame in listed]
        known = {digest for frame in listed for digest in (frame["sha256"], frame.get("asked"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"cannot read {path}, which lists the calibration frames ({error}): export again"
        ) from error
    if hashlib.sha256("\n".join(hashes).encode()).hexdigest() != calibration.sha256:
        raise ArtifactError(
            f"{path} lists other frames than those {artifact.directory} was calibrated on: export again"
        )
    return sum(not known.isdisjoint(_calibration_hashes(frame, config)) for frame in frames)


def _calibration_hashes(frame: Frame, config: PolicyConfig) -> set[str]:
    """A frame's hashes as in a calibration set, of its instruction as typed and as a prompt has it, in lower case.

    Empty for a frame without an action to calibrate on. Lists made before 0.2 hold instructions as typed alone.
    """
    try:
        tokens = action_tokens(frame, config)
        return {frame_hash(frame, words, tokens) for words in {frame.instruction, frame.instruction.lower()}}
    except (FrameError, UsageError):
        return set()
