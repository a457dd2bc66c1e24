"""A checkpoint as the reference: every weight in one type, adapters merged on the way, torch's own products."""

from __future__ import annotations

import torch

from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, EMBEDDINGS, HEAD, vision_keys
from edge_vla.model import Decoder
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.kernels import TORCH
from edge_vla.runtime.network import Embeddings, Head, Network
from edge_vla.runtime.vision.towers import torch_vision


def load_reference(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, full_vocabulary: bool = False
) -> StagedEngine:
    spec, source = checkpoint.config.spec, checkpoint.tensors
    vision = torch_vision(spec, {name: source.load(name) for name in vision_keys(spec)}, dtype, device)
    with torch.device("meta"):
        decoder = Decoder(spec.decoder, embeddings=False)
    weights = {name: source.load(DECODER_PREFIX + name).to(device, dtype) for name in decoder.state_dict()}
    decoder.load_state_dict(weights, assign=True)
    head = source.load(HEAD).to(device, dtype)
    table = source.load(EMBEDDINGS)
    network = Network(
        spec=spec,
        dtype=dtype,
        device=device,
        vision=vision,
        embeddings=Embeddings.of(table, spec.action, dtype, device),
        decoder=decoder.eval().requires_grad_(False),
        head=Head(head[spec.action.first : spec.action.end], head),
        chosen={"decoder": TORCH, "vision": TORCH},
        weight_bytes={
            "vision": vision.bytes,
            "decoder": sum(weight.nbytes for weight in decoder.state_dict().values()),
            "head": head.nbytes,
            "embeddings (host)": table.nbytes,
        },
    )
    return StagedEngine(network, full_vocabulary)
