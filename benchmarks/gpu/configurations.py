"""The configurations of our engine that `make bench-gpu` measures, and how each gets onto the device.

Each is loaded from an artifact on disk, as a user's is. Knows names and files; knows nothing of clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from benchmarks.gpu import weights
from benchmarks.gpu.run import Run
from edge_vla.artifact import Artifact
from edge_vla.runtime.gpu.config import Activations
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.gpu.load import from_artifact


@dataclass(frozen=True, slots=True)
class Configuration:
    name: str
    bits: int  # of the decoder's weights
    vision_bits: int
    activations: Activations  # bits, in the prefill and in int8 towers

    @property
    def about(self) -> str:
        return (
            f"{self.bits}-bit decoder, {self.vision_bits}-bit towers, {self.activations}-bit activations in the prefill"
        )


W4A16: Final = Configuration("int4, w4a16 prefill", 4, 8, "16")
W4A8: Final = Configuration("int4, w4a8 prefill", 4, 8, "8")
W8A16: Final = Configuration("int8, w8a16 prefill", 8, 8, "16")
W8A8: Final = Configuration("int8, w8a8 prefill", 8, 8, "8")
BF16: Final = Configuration("bf16", 16, 16, "16")
CONFIGURATIONS: Final = (W4A16, W4A8, W8A16, W8A8, BF16)

CHANCE: Final = 0.5  # that a drafted dimension is right
DRAFTED: Final = f"{W4A8.name}, drafts at p = {CHANCE:g}"
DRAFT_IN_PREFILL: Final = f"{W4A16.name}, drafts at p = {CHANCE:g} verified in the prefill"


def artifact_of(run: Run, configuration: Configuration) -> Artifact:
    """The policy at full size in this configuration's formats, written when first asked for."""
    directory = run.scratch / f"{configuration.bits}-{configuration.vision_bits}"
    if directory.exists():
        return Artifact(directory)
    return weights.write(directory, run.checkpoint, configuration.bits, configuration.vision_bits, run.device)


def load(run: Run, configuration: Configuration, backend: Backend | None = None) -> GpuEngine:
    artifact = artifact_of(run, configuration)
    return from_artifact(artifact, torch.bfloat16, run.device, backend or run.backend, configuration.activations)
