"""An artifact as a GPU engine: one tensor at a time from the file, repacked on the device, never the model on the host.

Beside the weights the device holds at most one product's tensors twice. Knows files and formats; knows nothing of
tokens or graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from edge_vla.artifact import HEAD, NORMS, VISION, Artifact, layer_file, unpack_linear
from edge_vla.errors import ArtifactError, BackendError, CheckpointError, UsageError
from edge_vla.quant import NARROW, PackedWeight, Scheme, as_int4
from edge_vla.runtime import parts
from edge_vla.runtime.gpu import TRITON
from edge_vla.runtime.gpu.ahead.load import install
from edge_vla.runtime.gpu.config import Activations, GpuConfig, Steps, kernels, named
from edge_vla.runtime.gpu.decoder import KernelDecoder, KernelLayer
from edge_vla.runtime.gpu.device import Backend, CudaDevice, check
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.gpu.graph import Direct, Recorder, recorder
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.products import Product, product
from edge_vla.runtime.gpu.staging import StagedFile, Staging
from edge_vla.runtime.gpu.steps import settle
from edge_vla.runtime.gpu.vision import KernelVision
from edge_vla.runtime.network import Head, Network, RowVision
from edge_vla.runtime.vision import ROW_LOADERS, load_rows, shapes

SPARE: Final = 0.3e9  # beside the weights while loading: one product twice, the buffers, what kernels take


def load_artifact(artifact: Artifact, dtype: torch.dtype, device: torch.device, vision: str, kernel: str) -> GpuEngine:
    """As `--kernel` and `--vision` ask. UsageError for a vision backend that does not write rows on the device."""
    activations, steps = named(kernel)
    if vision in ("torch", "auto"):
        return from_artifact(artifact, dtype, device, "triton", activations, steps=steps)
    if vision not in ROW_LOADERS:
        raise UsageError(
            f"--vision {vision} writes no image rows on the GPU: leave it out, choose among {', '.join(ROW_LOADERS)}, "
            "or --kernel reference"
        )
    rows = vision, load_rows(artifact, device, vision)
    return from_artifact(artifact, dtype, device, "triton", activations, rows=rows, steps=steps)


def from_artifact(
    artifact: Artifact,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend = "triton",
    activations: Activations = "16",
    *,
    record: Recorder | None = None,
    cuda: CudaDevice | None = None,
    staging: Staging | None = None,
    rows: tuple[str, RowVision] | None = None,
    steps: Steps = "auto",
) -> GpuEngine:
    """`rows`: another vision than the kernels', and its name. Raises BackendError, ResourceError or DeviceLostError."""
    check(backend, device)
    if backend == TRITON and dtype not in (torch.bfloat16, torch.float16):
        raise BackendError(f"the GPU engine computes in 16 bits, not {dtype}: --dtype bf16, or --kernel reference")
    spec = artifact.manifest.config.spec
    compiled = f", kernels {install(artifact, device)}" if backend == TRITON and device.type == "cuda" else ""
    cuda = cuda or CudaDevice(device)
    cuda.require_free(round(artifact.device_bytes + SPARE), f"loading {artifact.directory}")
    staging = staging or Staging(device)
    with cuda.guard(f"loading {artifact.directory}"), torch.inference_mode():
        config = GpuConfig(kernels(backend), dtype, activations)
        made = [_layer(artifact, index, staging, config) for index in range(spec.decoder.layers)]
        layers, chosen = [layer for layer, _ in made], [names for _, names in made]
        head = StagedFile(artifact.directory / HEAD, staging)
        actions, norm = (_tensor(head, name, shape, dtype) for name, shape in parts.head_shapes(spec).items())
        decoder = KernelDecoder(spec.decoder, layers, norm, config.kernels, spec.decoder.max_positions)
        name, vision = rows or ("kernels", _vision(artifact, staging, config))
        embeddings = parts.embeddings(artifact, dtype, device)
        decode_steps = settle(decoder, steps, embeddings.actions[:GEMV_ROWS], cuda)
    # The references are there to be compared with: they run as they are, not as graphs.
    record = record or (recorder(device) if backend == TRITON else Direct())
    network = Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=vision,
        embeddings=embeddings,
        decoder=decoder,
        head=Head(actions),
        chosen={
            **_by_scheme(chosen),
            "vision": f"{vision.activation_bits}-bit activations" if isinstance(vision, KernelVision) else name,
            "decode steps": decode_steps,
            "engine": backend
            + (", no graph" if isinstance(record, Direct) else ", one CUDA graph an action")
            + compiled,
        },
        weight_bytes={
            "vision": vision.bytes,
            "decoder": decoder.bytes,
            "head": actions.nbytes + norm.nbytes,
            "action embeddings": embeddings.actions.nbytes,
            "embeddings (host)": embeddings.table.nbytes,
        },
    )
    return GpuEngine(network, decoder, cuda, record)


def _by_scheme(layers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Kernels by scheme over all layers."""
    schemes = sorted({scheme for layer in layers for scheme in layer})
    return {scheme: "; ".join(sorted({layer[scheme] for layer in layers if scheme in layer})) for scheme in schemes}


def _layer(artifact: Artifact, index: int, staging: Staging, config: GpuConfig) -> tuple[KernelLayer, dict[str, str]]:
    """One layer, and its kernels by scheme."""
    path, linears = artifact.directory / layer_file(index), artifact.manifest.layers[index]
    file, made, chosen = StagedFile(path, staging), dict[str, Product](), dict[str, str]()
    with _errors_name(path):
        for name, members in parts.FUSED.items():
            packed = [_int4(unpack_linear(part, linears[part], file)) for part in members]
            whole = parts.fuse(packed)
            made[name] = product([whole] if whole is not None else packed, config)
            for part in packed:
                chosen[part.scheme.value] = "/".join(dict.fromkeys(made[name].names))
        width = (artifact.manifest.config.spec.decoder.width,)
        norms = [_tensor(file, name, width, config.dtype) for name in NORMS]
    return KernelLayer(**made, input_layernorm=norms[0], post_attention_layernorm=norms[1]), chosen


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """What is missing or wrong in this file, as an ArtifactError with the remedy."""
    try:
        yield
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: export again") from error
    except CheckpointError as error:
        raise ArtifactError(f"{path}: {error}: export again") from error


def _int4(packed: PackedWeight) -> PackedWeight:
    """int3 and int2 weights as int4, unpacked on the host one linear at a time."""
    if packed.scheme not in NARROW or packed.scales is None:
        return packed
    device = packed.codes.device
    int4 = as_int4(PackedWeight(packed.scheme, packed.shape, packed.group, packed.codes.cpu(), packed.scales.cpu()))
    return PackedWeight(Scheme.INT4, int4.shape, int4.group, int4.codes.to(device), packed.scales)


def _vision(artifact: Artifact, staging: Staging, config: GpuConfig) -> KernelVision:
    path, spec = artifact.directory / VISION, artifact.manifest.config.spec
    file = StagedFile(path, staging)
    for name, expected in shapes(spec).items():
        got = file.entries[name].shape if name in file.entries else None
        if got != expected:
            raise ArtifactError(f"{path}: {name} is {got}, expected {expected}: export again")
    with _errors_name(path):
        return KernelVision(spec, file, config)


def _tensor(file: StagedFile, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of this shape and stored in 16 bits, or ArtifactError."""
    entry = file.entries.get(name)
    if entry is None or entry.shape != shape or entry.dtype not in (torch.bfloat16, torch.float16):
        raise ArtifactError(f"{file.path}: {name} is {entry}, expected {shape} in 16 bits: export again")
    return file[name].to(dtype)
