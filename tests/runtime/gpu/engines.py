"""Engines of the reference kernels on the CPU, and the same artifacts as the torch loop runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import edge_vla
from edge_vla.artifact import TOKENIZER, Artifact
from edge_vla.data import synthetic_image
from edge_vla.openvla import as_rgb, preprocess
from edge_vla.runtime.gpu.config import Activations
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.gpu.graph import Direct, Recorder, Work
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.policy import Policy
from edge_vla.runtime.types import Draft

CPU = torch.device("cpu")
WORDS = ("pick up the cup", "open the drawer", "put the red block on the plate")


def policy(
    directory: Path,
    dtype: torch.dtype = torch.bfloat16,
    activations: Activations = "16",
    record: Recorder | None = None,
) -> Policy:
    """An artifact run by the engine, with the reference kernels."""
    artifact = Artifact(directory)
    engine = from_artifact(artifact, dtype, CPU, "reference", activations, record=record)
    return Policy(engine, artifact.manifest.config, artifact.text(TOKENIZER))


def engine(made: Policy) -> GpuEngine:
    assert isinstance(made.engine, GpuEngine)
    return made.engine


@cache
def torch_loop(directory: Path) -> Policy:
    """The same artifact without the engine: the oracle."""
    return edge_vla.load(directory, "cpu", check=False)


def pixels(made: Policy, index: int) -> NDArray[np.float32]:
    return preprocess(as_rgb(synthetic_image(index, made.config.spec.image_size)), made.config.image)


def guess(bins: Sequence[int]) -> Draft:
    """As a session drafts: these first, then the network's own guesses."""
    return lambda known, guesses: [*guesses, *bins[len(guesses) :]]


@dataclass
class Counted:
    """Replays what was recorded, truly, and counts."""

    recorded: int = 0
    replayed: int = 0
    pieces: list[str] = field(default_factory=list)

    def record(self, work: Work) -> Work:
        self.recorded += 1
        replay = Direct().record(work)

        def again() -> None:
            self.replayed += 1
            replay()

        return again
