"""How strongly the action depends on each row of each linear: gradients of the action distribution, layer by layer.

A small change dz of the action logits costs KL = dz' F dz / 2, where F = diag(p) - p p'. A probe u = F^(1/2) e with
standard normal e has E[(u'dz)^2] = dz' F dz. So one backward pass of u gives, at the output of any linear, a gradient
g with which a change dW of its weight costs the mean of (sum over rows of g'dW x)^2 / 2. Two passes over the layers:
forward, keeping each layer's input on disk, then backward.
Knows the network and its distribution; nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES, attend, chunks
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, HEAD
from edge_vla.errors import NumericError
from edge_vla.model.decoder import DecoderLayer, RMSNorm

PROBES: Final = 2

Gradients = list[list[Tensor]]  # [probe][rows] (n, T, width)
Watch = Callable[[str, int, slice, Tensor, Tensor], None]  # linear, rows, part, its input, gradients (probes, n, T, N)


def action_logits(checkpoint: Checkpoint, hidden: Tensor) -> Tensor:
    """The last layer's output (…, width) -> action logits (…, bins) float32."""
    spec, dtype = checkpoint.config.spec, hidden.dtype
    norm = RMSNorm(spec.decoder.width, spec.decoder.norm_eps).requires_grad_(False)
    norm.weight.copy_(checkpoint.tensors.load(DECODER_PREFIX + "norm.weight"))
    head = checkpoint.tensors.load(HEAD)[spec.action.first : spec.action.end].to(hidden.device, dtype)
    return F.linear(norm.to(hidden.device, dtype)(hidden), head).float()


def probe_gradients(checkpoint: Checkpoint, rows: Sequence[Rows], seed: int, probes: int = PROBES) -> Gradients:
    """Gradients of random probes at the last layer's output `rows`; zero where a row predicts no token.

    NumericError for logits that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    found: Gradients = [[torch.zeros_like(same.hidden) for same in rows] for _ in range(probes)]
    for index, same in enumerate(rows):
        acting = same.hidden[:, -same.dims :].detach().requires_grad_(True)
        logits = action_logits(checkpoint, acting)
        if not torch.isfinite(logits).all():
            raise NumericError("the decoder gives non-finite numbers on the calibration frames: verify the checkpoint")
        root = logits.detach().softmax(dim=-1).sqrt()
        for probe in range(probes):
            noise = torch.randn(root.shape, generator=generator).to(root.device)
            direction = root * (noise - root * (root * noise).sum(dim=-1, keepdim=True))
            (gradient,) = torch.autograd.grad(logits, acting, direction, retain_graph=True)
            found[probe][index][:, -same.dims :] = gradient
    return found


def backpropagate_(layer: DecoderLayer, rows: Sequence[Rows], gradients: Gradients, watch: Watch) -> None:
    """Turn gradients at the layer's output into those at its input, in place; `watch` gets every linear on the way.

    `rows` are the layer's inputs.
    """
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    names = [name for stage in STAGES for name in stage]

    def keep(name: str) -> Callable[..., None]:
        def hook(module: object, given: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            inputs[name], outputs[name] = given[0].detach(), output

        return hook

    handles = [layer.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        for chunk in chunks(layer.self_attn.spec, rows):
            x = chunk.hidden.detach().clone().requires_grad_(True)
            middle = x + attend(layer, x, chunk.step)
            y = middle + layer.mlp(layer.post_attention_layernorm(middle))
            found = []
            for probe in gradients:
                given = probe[chunk.index][chunk.part].clone()  # autograd may hand a sum's gradient on uncopied
                found.append(torch.autograd.grad(y, [x, *(outputs[name] for name in names)], given, retain_graph=True))
                probe[chunk.index][chunk.part] = found[-1][0]
            for place, name in enumerate(names, start=1):
                watch(name, chunk.index, chunk.part, inputs[name], torch.stack([one[place] for one in found]))
    finally:
        for handle in handles:
            handle.remove()
