"""An artifact as a staged engine: the C decoder and towers where they run, torch's operators on any device else."""

from __future__ import annotations

import ctypes
import sys

import torch

from edge_vla.artifact import HEAD, Artifact, int8_prefill
from edge_vla.runtime import parts
from edge_vla.runtime.cpu.assemble import Assembly
from edge_vla.runtime.cpu.fused import FusedLayer
from edge_vla.runtime.cpu.native.decoder import NativeDecoder, NativeLayer
from edge_vla.runtime.cpu.native.steps import NativeSteps
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.kernels import AUTO
from edge_vla.runtime.network import Head, Network
from edge_vla.runtime.vision import load_vision


def load_artifact(
    artifact: Artifact, dtype: torch.dtype, device: torch.device, vision: str = AUTO, kernel: str = AUTO
) -> StagedEngine:
    """Read layer by layer into the kernels' own layouts. Raises UsageError for a kernel that runs no weight here."""
    spec = artifact.manifest.config.spec
    verdict = int8_prefill.read(artifact)
    may_round = verdict is not None and verdict.passed
    assembly = Assembly(spec, dtype, device, artifact.manifest.layers, kernel, int8_prefill=may_round)
    layers, decoder_bytes = list[FusedLayer | NativeLayer](), 0
    for index, (linears, norms) in enumerate(artifact.layers()):
        decoder_bytes += sum(packed.bytes for packed in linears.values()) + sum(norm.nbytes for norm in norms.values())
        layers.append(assembly.layer(index, linears, norms))
        return_freed_memory()
    assembly.check_kernel()
    stored = artifact.tensors(HEAD, parts.head_shapes(spec))
    actions, norm = (stored[name].to(device, dtype) for name in parts.head_shapes(spec))
    embeddings = parts.embeddings(artifact, dtype, device)
    decoder, head = assembly.decoder(layers, norm), assembly.head(actions)
    steps = first_token = None
    if isinstance(decoder, NativeDecoder) and head is not None:
        steps, first_token = NativeSteps(decoder, head, embeddings.actions), spec.decoder.bos
        decoder.begin(embeddings.text((first_token,)))
    vision_name, towers = load_vision(artifact, dtype, device, vision, assembly.target)
    network = Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=towers,
        embeddings=embeddings,
        decoder=decoder,
        head=Head(actions, kernel=head),
        chosen={**assembly.kernels(), "vision": vision_name},
        weight_bytes={
            "vision": towers.bytes,
            "decoder": decoder_bytes,
            "head": actions.nbytes + norm.nbytes,
            "embeddings (host)": embeddings.table.nbytes,
        },
        decode_steps=steps,
        first_token=first_token,
    )
    return StagedEngine(network)


def return_freed_memory() -> None:
    """Give freed heap pages back to the system: repacking weights leaves gigabytes of holes in glibc's heap."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
