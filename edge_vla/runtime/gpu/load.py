"""An artifact onto a device: one tensor at a time from the file, repacked there, never the model on the host.

Beside the weights the device holds at most one product's tensors twice. Knows files and formats; knows nothing of
tokens or graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from edge_vla.artifact import EMBEDDINGS, HEAD, NORMS, VISION, Artifact, layer_file, map_matrix, unpack_linear
from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import ArtifactError, BackendError, CheckpointError, UsageError
from edge_vla.quant import NARROW, PackedWeight, Scheme, as_int4
from edge_vla.runtime.cpu.assemble import TOGETHER, fused
from edge_vla.runtime.gpu import ROUNDED, TRITON
from edge_vla.runtime.gpu.config import Activations, GpuConfig, kernels
from edge_vla.runtime.gpu.decoder import KernelDecoder, KernelLayer
from edge_vla.runtime.gpu.device import Backend, CudaDevice, check
from edge_vla.runtime.gpu.engine import Engine
from edge_vla.runtime.gpu.graph import Direct, Recorder, recorder
from edge_vla.runtime.gpu.products import Product, product
from edge_vla.runtime.gpu.staging import StagedFile, Staging
from edge_vla.runtime.gpu.vision import KernelVision
from edge_vla.runtime.network import Embeddings, Head, Network
from edge_vla.spec import DecoderSpec, PolicySpec

SPARE: Final = 0.3e9  # beside the weights while loading: one product twice, the room, what kernels take


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
) -> Network:
    """The network with an engine in it. Raises BackendError, ResourceError or DeviceLostError with the remedy."""
    check(backend, device)
    if backend == TRITON and dtype not in (torch.bfloat16, torch.float16):
        raise BackendError(f"the GPU engine computes in 16 bits, not {dtype}: --dtype bf16, or --kernel reference")
    spec = artifact.manifest.config.spec
    cuda = cuda or CudaDevice(device)
    cuda.require_free(round(artifact.device_bytes + SPARE), f"loading {artifact.directory}")
    staging = staging or Staging(device)
    with cuda.guard(f"loading {artifact.directory}"), torch.inference_mode():
        config = GpuConfig(kernels(backend), dtype, activations)
        layers = [_layer(artifact, index, staging, config) for index in range(spec.decoder.layers)]
        head = StagedFile(artifact.directory / HEAD, staging)
        norm = _vector(head, "norm.weight", spec.decoder, dtype)
        decoder = KernelDecoder(
            spec.decoder, [layer for layer, _ in layers], norm, config.kernels, spec.decoder.max_positions
        )
        actions = _matrix(head, "actions", (spec.action.bins, spec.decoder.width)).to(dtype)
        vision = _vision(artifact, spec, staging, config)
    table = map_matrix(artifact.directory / EMBEDDINGS, "embed_tokens.weight")
    if table.shape != (spec.decoder.vocab_rows, spec.decoder.width):
        raise ArtifactError(f"{EMBEDDINGS} is {tuple(table.shape)}, which is not the network's: export again")
    embeddings = Embeddings(table, table[spec.action.first : spec.action.end].to(device, dtype, copy=True))
    outputs = Head(actions, None)
    # The references are there to be compared with: they run as they are, not as graphs.
    record = record or (recorder(device) if backend == TRITON else Direct())
    return Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=vision,
        embeddings=embeddings,
        decoder=decoder,
        head=outputs,
        kernels={
            **_by_scheme([chosen for _, chosen in layers]),
            "vision": f"{8 if vision.rounded else 16}-bit activations",
            "engine": f"{backend}, {'no graph' if isinstance(record, Direct) else 'one CUDA graph an action'}",
            "arithmetic": str(dtype).removeprefix("torch."),
            "device": device.type,
        },
        weight_bytes={
            "vision": vision.bytes,
            "decoder": decoder.bytes,
            "head": actions.nbytes + norm.nbytes,
            "action embeddings": embeddings.actions.nbytes,
            "embeddings (host)": table.nbytes,
        },
        engine=Engine(spec, vision, embeddings, decoder, outputs, cuda, record),
    )


def _by_scheme(layers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Kernels by scheme over all layers."""
    schemes = sorted({scheme for layer in layers for scheme in layer})
    return {scheme: "; ".join(sorted({layer[scheme] for layer in layers if scheme in layer})) for scheme in schemes}


def _layer(artifact: Artifact, index: int, staging: Staging, config: GpuConfig) -> tuple[KernelLayer, dict[str, str]]:
    """One layer, and its kernels by scheme."""
    path, linears = artifact.directory / layer_file(index), artifact.manifest.layers[index]
    file, made, chosen = StagedFile(path, staging), dict[str, Product](), dict[str, str]()
    try:
        for name, parts in TOGETHER.items():
            packed = [_int4(unpack_linear(part, linears[part], file)) for part in parts]
            whole = fused(packed)
            made[name] = product([whole] if whole is not None else packed, config)
            for part in packed:
                chosen[part.scheme.value] = "/".join(dict.fromkeys(made[name].names))
        norms = [_vector(file, name, artifact.manifest.config.spec.decoder, config.dtype) for name in NORMS]
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: export again") from error
    except CheckpointError as error:
        raise ArtifactError(f"{path}: {error}: export again") from error
    return KernelLayer(**made, input_layernorm=norms[0], post_attention_layernorm=norms[1]), chosen


def _int4(packed: PackedWeight) -> PackedWeight:
    """Narrow weights as int4. They are unpacked on the host, one linear at a time."""
    if packed.scheme not in NARROW or packed.scales is None:
        return packed
    device = packed.codes.device
    wide = as_int4(PackedWeight(packed.scheme, packed.shape, packed.group, packed.codes.cpu(), packed.scales.cpu()))
    return PackedWeight(Scheme.INT4, wide.shape, wide.group, wide.codes.to(device), packed.scales)


def _vision(artifact: Artifact, spec: PolicySpec, staging: Staging, config: GpuConfig) -> KernelVision:
    path = artifact.directory / VISION
    file = StagedFile(path, staging)
    keys = key_table(spec)
    for name in vision_keys(spec):
        got = file.entries[name].shape if name in file.entries else None
        if got != keys[name].shape:
            raise ArtifactError(f"{path}: {name} is {got}, expected {keys[name].shape}: export again")
    try:
        return KernelVision(spec, file, config)
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: export again") from error
    except CheckpointError as error:
        raise ArtifactError(f"{path}: {error}: export again") from error


def _vector(file: StagedFile, name: str, spec: DecoderSpec, dtype: torch.dtype) -> Tensor:
    return _matrix(file, name, (spec.width,)).to(dtype)


def _matrix(file: StagedFile, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape in 16 bits, or ArtifactError."""
    entry = file.entries.get(name)
    if entry is None or entry.shape != shape or entry.dtype not in (torch.bfloat16, torch.float16):
        raise ArtifactError(f"{file.path}: {name} is not {shape} in 16 bits but {entry}: export again")
    return file[name]


def choose(kernel: str, vision: str) -> tuple[Backend, Activations]:
    """What `--kernel` names, whose graph holds the towers too: UsageError for any but torch's."""
    if vision not in ("torch", "auto"):
        raise UsageError(
            f"--vision {vision} cannot be part of the GPU engine's graph: leave it out, or --kernel reference"
        )
    return "triton", "8" if kernel == ROUNDED else "16"
