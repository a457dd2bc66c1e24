"""A policy's network made ready to run, from an artifact or from a checkpoint: the same face for both.

Knows weights, kernels and devices. Knows nothing of prompts, statistics or robots.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.artifact import EMBEDDINGS, HEAD, VISION, Artifact, map_matrix
from edge_vla.checkpoint import Checkpoint, key_table
from edge_vla.checkpoint.keys import DECODER_PREFIX, vision_keys
from edge_vla.checkpoint.keys import EMBEDDINGS as EMBEDDINGS_KEY
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.errors import ArtifactError, UsageError
from edge_vla.model import Decoder
from edge_vla.runtime.cpu.assemble import Assembly, CpuDecoder
from edge_vla.runtime.cpu.fused import FusedLayer
from edge_vla.runtime.cpu.native.decoder import NativeDecoder, NativeLayer
from edge_vla.runtime.cpu.native.library import fast, library
from edge_vla.runtime.cpu.native.product import NativeHead
from edge_vla.runtime.cpu.native.steps import NativeSteps
from edge_vla.runtime.cpu.native.vision import NativeVision, vision_fits
from edge_vla.runtime.gpu import NAMES as ENGINE
from edge_vla.runtime.gpu import TRITON
from edge_vla.runtime.kernels import AUTO, NATIVE, TORCH
from edge_vla.runtime.kernels.reference import BATCH_INVARIANT_ROWS
from edge_vla.runtime.vision import OnnxVision, Vision, torch_vision, with_flat_patches
from edge_vla.spec import ActionSpec, PolicySpec

if TYPE_CHECKING:
    from edge_vla.runtime.gpu.decoder import KernelDecoder
    from edge_vla.runtime.gpu.engine import Engine


@dataclass(frozen=True)
class Embeddings:
    """Text rows stay on the host, memory-mapped where they come from a file; action rows live on the device."""

    table: Tensor  # (vocabulary rows, width), host
    actions: Tensor  # (bins, width), device

    def text(self, ids: tuple[int, ...]) -> Tensor:
        """(1, T, width) on the device."""
        return self.table[list(ids)].to(self.actions.device, self.actions.dtype)[None]

    def action(self, bins: Tensor, out: Tensor) -> None:
        """Indices into the action rows (n,) -> `out` (n, width)."""
        torch.index_select(self.actions, 0, bins, out=out)


@dataclass(frozen=True)
class Head:
    """`actions` are the head's rows of the action ids, lowest id first; `full` is the whole head, if there is one."""

    actions: Tensor  # (bins, width)
    full: Tensor | None
    native: NativeHead | None = None  # the action rows', where C has it

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, width) -> (n, bins) float32, rounded to the working type first, as upstream does."""
        if self.native is not None:
            return self.native(hidden).float()
        return F.linear(hidden, self.actions).float()

    def choose(self, hidden: Tensor) -> tuple[list[int], list[float]]:
        """(n, width) -> the best bin of each row, and its lead: `margins`. A row's bits depend on that row alone."""
        if self.native is not None:
            return self.native.choose(hidden)
        rows = hidden.shape[0]  # torch adds in another order where there are fewer
        logits = self.logits(F.pad(hidden, (0, 0, 0, max(0, BATCH_INVARIANT_ROWS - rows))))[:rows]
        return logits.argmax(dim=-1).tolist(), margins(logits)

    def full_logits(self, hidden: Tensor) -> Tensor:
        assert self.full is not None, "an artifact has no full head"
        return F.linear(hidden, self.full).float()


def margins(logits: Tensor) -> list[float]:
    """(n, ids) -> the lead of each row's largest over its second, NaN where one is not finite."""
    top = logits.topk(2, dim=-1).values
    return torch.where(logits.isfinite().all(dim=-1), top[:, 0] - top[:, 1], torch.nan).tolist()


@dataclass(frozen=True)
class Network:
    """With an `engine`, actions are decided by that, and the parts beside it serve teacher forcing.

    With `decode_steps`, embeddings, decoder and head are asked together for what comes after the prefill.
    """

    spec: PolicySpec
    dtype: torch.dtype
    device: torch.device
    vision: Vision
    embeddings: Embeddings
    decoder: Decoder | CpuDecoder | KernelDecoder
    head: Head
    kernels: Mapping[str, str]
    weight_bytes: Mapping[str, int]
    engine: Engine | None = None
    decode_steps: NativeSteps | None = None

    @property
    def action(self) -> ActionSpec:
        return self.spec.action


def from_artifact(
    artifact: Artifact, dtype: torch.dtype, device: torch.device, vision: str, kernel: str = AUTO
) -> Network:
    """Read the artifact layer by layer straight into device layouts. On CUDA, unless told otherwise, into an engine."""
    if kernel in ENGINE or (kernel == AUTO and device.type == "cuda"):
        from edge_vla.runtime.gpu import load as gpu

        backend, activations = gpu.choose(TRITON if kernel == AUTO else kernel, vision)
        return gpu.from_artifact(artifact, dtype, device, backend, activations)
    spec = artifact.manifest.config.spec
    assembly = Assembly(spec, dtype, device, artifact.manifest.layers, kernel)
    layers, decoder_bytes = list[FusedLayer | NativeLayer](), 0
    for index, (linears, norms) in enumerate(artifact.layers()):
        decoder_bytes += sum(packed.bytes for packed in linears.values()) + _bytes(norms)
        layers.append(assembly.layer(index, linears, norms))
        return_freed_memory()
    head = artifact.tensors(
        HEAD, {"actions": (spec.action.bins, spec.decoder.width), "norm.weight": (spec.decoder.width,)}
    )
    actions = head["actions"].to(device, dtype)
    table = map_matrix(artifact.directory / EMBEDDINGS, "embed_tokens.weight")
    if table.shape != (spec.decoder.vocab_rows, spec.decoder.width):
        raise ArtifactError(f"{EMBEDDINGS} is {tuple(table.shape)}, which is not the network's: export again")
    embeddings = _embeddings(table, spec.action, dtype, device)
    decoder, native_head = assembly.decoder(layers, head["norm.weight"]), assembly.head(actions)
    decode_steps = None
    if isinstance(decoder, NativeDecoder) and native_head is not None:
        decode_steps = NativeSteps(decoder, native_head, embeddings.actions)
    seeing, see = _vision(artifact, dtype, device, vision)
    chosen = assembly.chosen
    if kernel not in (AUTO, TORCH) and kernel not in set().union(*chosen.values()):
        raise UsageError(
            f"--kernel {kernel}: no weight of this artifact, of formats {sorted(chosen)}, has such a kernel"
        )
    return Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=see,
        embeddings=embeddings,
        decoder=decoder,
        head=Head(actions, None, native_head),
        kernels={**assembly.kernels(), "vision": seeing, **_where(dtype, device)},
        weight_bytes={
            "vision": see.bytes,
            "decoder": decoder_bytes,
            "head": _bytes(head),
            "embeddings (host)": table.nbytes,
        },
        decode_steps=decode_steps,
    )


def _vision(artifact: Artifact, dtype: torch.dtype, device: torch.device, want: str) -> tuple[str, Vision]:
    """The backend of this name, and that name; `auto`: C where that is fastest, else torch."""
    spec = artifact.manifest.config.spec
    keys = key_table(spec)
    shapes = {name: keys[name].shape for name in vision_keys(spec)}
    if want == "onnx":
        return want, OnnxVision(artifact.graph, device, parameters=sum(map(math.prod, shapes.values())))
    if want in (AUTO, NATIVE) and dtype == torch.bfloat16 and device.type == "cpu":
        weights = artifact.vision_weights(shapes)
        able = fast() if want == AUTO else library() is not None
        if able and vision_fits(spec, weights):
            return NATIVE, NativeVision(spec, weights)
    if want == NATIVE:
        raise UsageError(f"--vision {NATIVE} needs a C compiler, and bf16 on the CPU")
    network = torch_vision(spec, artifact.tensors(VISION, shapes), dtype, device)
    return "torch", with_flat_patches(network)


def from_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Network:
    """The reference: every weight in `dtype`, adapters merged on the way, torch's own products."""
    spec, source = checkpoint.config.spec, checkpoint.tensors
    see = torch_vision(spec, {name: source.load(name) for name in vision_keys(spec)}, dtype, device)
    decoder = _empty_decoder(spec)
    decoder.load_state_dict(
        {name: source.load(DECODER_PREFIX + name).to(device, dtype) for name in decoder.state_dict()}, assign=True
    )
    full = source.load(HEAD_KEY).to(device, dtype)
    table = source.load(EMBEDDINGS_KEY)
    return Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=see,
        embeddings=_embeddings(table, spec.action, dtype, device),
        decoder=decoder.eval().requires_grad_(False),
        head=Head(full[spec.action.first : spec.action.end], full),
        kernels={"decoder": "torch", "vision": "torch", **_where(dtype, device)},
        weight_bytes={
            "vision": see.bytes,
            "decoder": _bytes(decoder.state_dict()),
            "head": full.nbytes,
            "embeddings (host)": table.nbytes,
        },
    )


def return_freed_memory() -> None:
    """Give freed heap pages back to the system: repacking weights leaves gigabytes of holes in glibc's heap."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _where(dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    return {"arithmetic": str(dtype).removeprefix("torch."), "device": device.type}


def _empty_decoder(spec: PolicySpec) -> Decoder:
    with torch.device("meta"):
        return Decoder(spec.decoder, embeddings=False)


def _embeddings(table: Tensor, action: ActionSpec, dtype: torch.dtype, device: torch.device) -> Embeddings:
    return Embeddings(table, table[action.first : action.end].to(device, dtype, copy=True))


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
