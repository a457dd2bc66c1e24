"""One artifact on this machine: is it whole, does it fit, which kernels run it, do its golden frames hold.

Importing this imports torch, so it is imported where torch was seen to import in another process.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

from edge_vla.artifact import EMBEDDINGS, MANIFEST, Artifact, int8_prefill
from edge_vla.device import memory
from edge_vla.device.doctor.check import ARTIFACT, RESOURCE, Found, failure, note
from edge_vla.device.doctor.machine import gigabytes
from edge_vla.device.doctor.system import System
from edge_vla.errors import ArtifactError
from edge_vla.runtime import Policy, load, replay

OVERHEAD: Final = 0.8e9  # activations, buffers, the CUDA context or torch itself
NEIGHBOURS: Final = 200  # entries of a folder that are looked through for a similar name


class Examined:
    """The checks of one artifact, which share what they open, on the device that `auto` takes."""

    def __init__(self, directory: Path, system: System) -> None:
        self.directory, self.system = directory, system

    @cached_property
    def opened(self) -> Artifact:
        return Artifact(self.directory)

    @cached_property
    def policy(self) -> Policy:
        return load(self.directory, check=False)

    def structure(self) -> Found:
        """Manifest and sizes; the prompt and the statistics that were settled at export."""
        if not (self.directory / MANIFEST).is_file():
            return _no_artifact(self.directory)
        try:
            manifest = self.opened.manifest
        except ArtifactError as error:
            return failure(f"damaged: {error}", f"edge-vla verify {self.directory}", ARTIFACT)
        keys = sorted(manifest.config.statistics)
        shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        return Found(f"{manifest.recipe.bits} bits, prompt {manifest.config.prompt.value}, keys {shown}")

    def fits(self) -> Found:
        """Weights on the device and what else a policy takes, beside what is free there."""
        facts, weights = self.system.torch.facts, self.opened.device_bytes
        on_gpu = "free" in facts
        shared = self.system.jetson is not None or not on_gpu
        needed = weights + OVERHEAD + (self.opened.manifest.files[EMBEDDINGS].size if shared else 0)
        free = int(facts["free"]) if on_gpu else memory.available_bytes(self.system.root)
        if free is None:
            return note(f"needs {gigabytes(needed)}, free memory is not visible")
        found = f"needs {gigabytes(needed)} of {gigabytes(free)} free on the {'GPU' if on_gpu else 'CPU'}"
        if needed > free:
            return failure(found, "edge-vla export SOURCE --bits 4 --out SMALLER  # or close other programs", RESOURCE)
        return Found(found)

    def hashes(self) -> Found:
        try:
            self.opened.verify()
        except ArtifactError as error:
            return failure(str(error), f"edge-vla verify {self.directory}  # after copying it again", ARTIFACT)
        return Found(f"{len(self.opened.manifest.files)} files, all hashes match")

    def kernels(self) -> Found:
        """What `auto` chose for each format, and why the C engine is or is not among them."""
        kernels = self.policy.network.kernels
        chosen = {name: kernel for name, kernel in kernels.items() if name not in ("arithmetic", "device")}
        return Found(", ".join(f"{name}: {kernel}" for name, kernel in chosen.items()) + f" ({self._why()})")

    def golden(self) -> Found:
        frames = self.opened.manifest.golden
        if not frames:
            return note("no golden frames, made before they were recorded")
        try:
            ties = replay(self.policy, self.directory, frames)
        except ArtifactError as error:
            return failure(str(error), f"edge-vla verify {self.directory} --kernel reference", ARTIFACT)
        held = f"{len(frames) - len(ties)} of {len(frames)} golden frames give their tokens"
        return note(f"{held}, the others differ at a near-tie") if ties else Found(held)

    def _why(self) -> str:
        from edge_vla.runtime.cpu.native.library import chosen, why_none

        if self.policy.network.device.type != "cpu":
            return "a GPU that torch sees"
        target = chosen()
        if target is None:
            return why_none()
        verdict = int8_prefill.read(self.opened)
        measured = f"8-bit rows in the prefill: {verdict.why}" if verdict else "8-bit rows in the prefill: not measured"
        return f"{target.name} is the best that this processor and C have; {measured}"


def _no_artifact(directory: Path) -> Found:
    similar = list(_similar(directory))
    if similar:
        return failure(
            f"{directory} is no artifact; did you mean {similar[0]}?", f"edge-vla doctor {similar[0]}", ARTIFACT
        )
    if (directory / "config.json").is_file():
        return failure(
            f"{directory} is a checkpoint, not an artifact", f"edge-vla export {directory} --bits 4 --out OUT", ARTIFACT
        )
    what = "has no manifest.json" if directory.is_dir() else "does not exist"
    return failure(f"{directory} {what}", "edge-vla export SOURCE --bits 4 --out OUT; edge-vla doctor OUT", ARTIFACT)


def _similar(directory: Path) -> Iterator[Path]:
    """Artifacts inside the folder, or beside it under a similar name; nearest first."""
    for folder, inside in ((directory, True), (directory.parent, False)):
        try:
            beside = sorted(path for _, path in zip(range(NEIGHBOURS), folder.iterdir(), strict=False))
        except OSError:
            continue
        names = {path.name: path for path in beside if (path / MANIFEST).is_file()}
        yield from (
            names.values() if inside else map(names.__getitem__, difflib.get_close_matches(directory.name, names))
        )
