"""What both backends read from an artifact in the same way: embeddings, head, and which products become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from edge_vla.artifact import EMBEDDINGS, Artifact, map_matrix
from edge_vla.errors import ArtifactError
from edge_vla.quant import PackedWeight
from edge_vla.runtime.network import Embeddings
from edge_vla.spec import PolicySpec

FUSED: Final[Mapping[str, tuple[str, ...]]] = {  # linears that share their input become one product
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}


def embeddings(artifact: Artifact, dtype: torch.dtype, device: torch.device) -> Embeddings:
    spec = artifact.manifest.config.spec
    table = map_matrix(artifact.directory / EMBEDDINGS, "embed_tokens.weight")
    expected = (spec.decoder.vocab_rows, spec.decoder.width)
    if table.shape != expected:
        raise ArtifactError(f"{EMBEDDINGS} is {tuple(table.shape)}, expected {expected}: export again")
    return Embeddings.of(table, spec.action, dtype, device)


def head_shapes(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """Of the head's file: its rows of the action ids, and the weight of the last norm."""
    return {"actions": (spec.action.bins, spec.decoder.width), "norm.weight": (spec.decoder.width,)}


def fuse(parts: Sequence[PackedWeight]) -> PackedWeight | None:
    """One weight whose outputs are those of `parts` in order; None if their formats differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({(part.scheme, part.group, part.shape[1], part.codes.dtype) for part in parts}) > 1:
        return None
    scales = [part.scales for part in parts if part.scales is not None]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return PackedWeight(
        scheme=first.scheme,
        shape=(sum(part.shape[0] for part in parts), first.shape[1]),
        group=first.group,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat(scales) if scales else None,
        zeros=torch.cat(zeros) if zeros else None,
    )
