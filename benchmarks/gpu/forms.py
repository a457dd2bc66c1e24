"""Our side of `make bench-gpu`: in which forms the policy is measured, and how each comes onto the device.

Every form is loaded from an artifact on disk as a user's is. Knows names and files; knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from benchmarks.gpu import weights
from benchmarks.gpu.run import Run
from edge_vla.artifact import Artifact
from edge_vla.runtime.gpu.config import Activations
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.gpu.load import from_artifact

# name -> bits of the decoder, bits of the towers, bits of a prefill's activations
FORMS: Final[Mapping[str, tuple[int, int, Activations]]] = {
    "int4, w4a16 prefill": (4, 8, "16"),
    "int4, w4a8 prefill": (4, 8, "8"),
    "int8, w8a16 prefill": (8, 8, "16"),
    "int8, w8a8 prefill": (8, 8, "8"),
    "bf16": (16, 16, "16"),
}
VISION_BITS: Final = {bits: vision for bits, vision, _ in FORMS.values()}
CHANCE: Final = 0.5  # that a drafted dimension is right
DRAFTED: Final = "int4, w4a8 prefill, drafts at p = 0.5"
DRAFTS_ON: Final = "int4, w4a8 prefill"
RIDING: Final = "int4, w4a16 prefill, drafts at p = 0.5 riding in the prefill"
RIDES_IN: Final = "int4, w4a16 prefill"  # not in a prefill that rounds rows: it would answer as another policy


def artifact_of(run: Run, bits: int) -> Artifact:
    """The policy at full size in so many bits, written when first asked for."""
    directory = run.scratch / f"int{bits}"
    if directory.exists():
        return Artifact(directory)
    return weights.write(directory, run.checkpoint, bits, VISION_BITS[bits], run.device)


def load(run: Run, form: str, backend: Backend | None = None) -> GpuEngine:
    bits, _, activations = FORMS[form]
    return from_artifact(artifact_of(run, bits), torch.bfloat16, run.device, backend or run.backend, activations)
