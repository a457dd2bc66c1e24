"""The memory that loading and running one artifact takes, in a process that does nothing else: one line of JSON.

python -m benchmarks.gpu.memory DIRECTORY DEVICE BACKEND PROMPT_TOKENS DIMS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu.result import Memory
from edge_vla.artifact import Artifact
from edge_vla.device.memory import peak_resident_bytes, resident_bytes
from edge_vla.device.sensors import GpuMemory, nvml
from edge_vla.errors import BackendError, EdgeVLAError
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.gpu.staging import Staging

ACTIONS = 3


def measure(directory: Path, device: torch.device, backend: Backend, prompt: int, dims: int) -> Memory:
    driver = open_nvml()
    empty_context = context_bytes(device, driver)
    host_before, staging, began = resident_bytes(), Staging(device), time.perf_counter()
    engine = from_artifact(Artifact(directory), torch.bfloat16, device, backend, staging=staging)
    load_s, load_peak = time.perf_counter() - began, _allocator_peak(device)
    _sample(driver)
    _act(engine, prompt, dims, driver)
    parts = {**engine.network.weight_bytes, **engine.bytes()}
    peak = _allocator_peak(device)
    return Memory(
        parts_bytes=parts,
        weights_bytes=_on_device(engine.network.weight_bytes),
        load_peak_bytes=load_peak,
        peak_bytes=peak,
        graphs_and_scratch_bytes=None if peak is None else peak - _on_device(parts),
        load_s=round(load_s, 2),
        staging_bytes=staging.bytes,
        staged_bytes=staging.moved,
        host_before_bytes=host_before,
        host_peak_bytes=peak_resident_bytes(),
        empty_context_bytes=empty_context,
        nvml=None if driver is None else driver.peaks(),
    )


def _act(engine: GpuEngine, prompt: int, dims: int, driver: GpuMemory | None) -> None:
    spec = engine.spec
    engine.warm([prompt], dims)
    _sample(driver)
    ids = (spec.decoder.bos, *[spec.decoder.eos + 1] * (prompt - 1))
    for _ in range(ACTIONS):
        engine.decide(ids, torch.zeros(3 * len(spec.towers), spec.image_size, spec.image_size), dims)
    _sample(driver)


def context_bytes(device: torch.device, driver: GpuMemory | None) -> int | None:
    """What a process holds on the device before it allocates anything: the growth that NVML sees, less one tensor."""
    if device.type != "cuda" or driver is None:
        return None
    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    _sample(driver)
    return driver.device - driver.start - torch.cuda.memory_reserved(device)


def _on_device(parts: Mapping[str, int]) -> int:
    return sum(size for name, size in parts.items() if "(host)" not in name)


def _sample(driver: GpuMemory | None) -> None:
    """NVML keeps no peak, so it is the largest of what is seen after each stage."""
    if driver is not None:
        driver.sample({os.getpid()})


def _allocator_peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def open_nvml() -> GpuMemory | None:
    try:
        return GpuMemory(nvml())
    except BackendError:
        return None


def main() -> None:
    directory, device, backend, prompt, dims = sys.argv[1:]
    kind: Backend = "triton" if backend == "triton" else "reference"
    found = measure(Path(directory), torch.device(device), kind, int(prompt), int(dims))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
