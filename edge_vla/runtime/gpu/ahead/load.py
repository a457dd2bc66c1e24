"""Kernels that were compiled ahead, checked and handed to Triton before an engine launches any."""

from __future__ import annotations

import torch

from edge_vla.artifact import Artifact
from edge_vla.errors import ResourceError
from edge_vla.runtime.gpu.ahead.chips import chip_name
from edge_vla.runtime.gpu.ahead.store import KernelsIdentity, find, sources
from edge_vla.runtime.gpu.ahead.triton_cache import put
from edge_vla.runtime.gpu.kernels.tiles import Chip
from edge_vla.runtime.vision.tensorrt.plan import device_cache


def identity_of(chip: Chip) -> KernelsIdentity:
    """Of the kernels that this package and this Triton make for a chip."""
    import triton

    return KernelsIdentity(chip_name(chip), chip.sm_count, str(triton.__version__), sources())


def install(artifact: Artifact, device: torch.device) -> str:
    """How kernels come to this device, in words. BackendError or ArtifactError for kernels that must not run here."""
    try:
        folder = device_cache(artifact.identity)
    except ResourceError:  # nowhere to keep any: none were kept
        return "compiled here"
    chip = Chip.of(device)
    rebuild = f"edge-vla build-engine {artifact.directory} --chip {chip_name(chip)}"
    rebuild += f" --multiprocessors {chip.sm_count}"
    kernels = find(folder, identity_of(chip), rebuild)
    for one in kernels:
        put(one)
    return f"{len(kernels)} compiled ahead" if kernels else "compiled here"
