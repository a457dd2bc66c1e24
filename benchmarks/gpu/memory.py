"""What loading and running one artifact takes, in a process that does nothing else: one line of JSON.

python -m benchmarks.gpu.memory DIRECTORY DEVICE BACKEND TEXT DIMS
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from edge_vla.artifact import Artifact
from edge_vla.device.memory import peak_resident_bytes, resident_bytes
from edge_vla.device.sensors import GpuMemory, nvml
from edge_vla.errors import BackendError, EdgeVLAError
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.gpu.staging import Staging


def measure(directory: Path, device: torch.device, backend: Backend, text: int, dims: int) -> dict[str, Any]:
    """Bytes: the allocator's peaks while loading and while acting, NVML's for this process, the host's, and by part."""
    watched = _nvml()
    before = None if watched is None else watched.start
    empty = _context(device, watched)
    host, staging, began = resident_bytes(), Staging(device), time.perf_counter()
    engine = from_artifact(Artifact(directory), torch.bfloat16, device, backend, staging=staging)
    seconds, loaded = time.perf_counter() - began, _peak(device)
    _sample(watched)
    spec = engine.spec
    engine.warm([text], dims)
    _sample(watched)
    prompt = (spec.decoder.bos, *[spec.decoder.eos + 1] * (text - 1))
    for _ in range(3):
        engine.decide(prompt, torch.zeros(3 * len(spec.towers), spec.image_size, spec.image_size), dims)
    _sample(watched)
    parts = {**engine.network.weight_bytes, **engine.bytes()}
    on_device = sum(size for name, size in parts.items() if "host" not in name)
    peak = _peak(device)
    return {
        "parts": parts,
        "weights_bytes": sum(size for name, size in engine.network.weight_bytes.items() if "host" not in name),
        "load_peak_bytes": loaded,
        "peak_bytes": peak,
        "graphs_and_scratch_bytes": None if peak is None else peak - on_device,
        "load_seconds": round(seconds, 2),
        "staging_bytes": staging.bytes,
        "staged_bytes": staging.moved,
        "host_before_bytes": host,
        "host_peak_bytes": peak_resident_bytes(),
        "empty_context_bytes": empty,
        "nvml": None if watched is None else {**dataclasses.asdict(watched.peaks()), "device_before_bytes": before},
    }


def _context(device: torch.device, watched: GpuMemory | None) -> int | None:
    """What a process holds on the device before it has allocated anything: by how much that fills it, as NVML sees."""
    if device.type != "cuda" or watched is None:
        return None
    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    _sample(watched)
    return watched.device - watched.start - torch.cuda.memory_reserved(device)


def _sample(watched: GpuMemory | None) -> None:
    """NVML keeps no peak: it is the largest of what is seen after each stage."""
    if watched is not None:
        watched.sample({os.getpid()})


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _nvml() -> GpuMemory | None:
    try:
        return GpuMemory(nvml())
    except BackendError:
        return None


def main() -> None:
    directory, device, backend, text, dims = sys.argv[1:]
    kind: Backend = "triton" if backend == "triton" else "reference"
    found = measure(Path(directory), torch.device(device), kind, int(text), int(dims))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
