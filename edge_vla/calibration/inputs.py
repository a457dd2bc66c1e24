"""What the linears of a layer read: how large each channel is, and some rows to try changes on.

One pass through the layer as it is. The rows are drawn in proportion to what they count, so that a plain sum over
them stands for the weighted sum over all. Knows the four stages of a layer; nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES, Chunk, Weights, attend, chunks
from edge_vla.errors import NumericError
from edge_vla.model.decoder import DecoderLayer

DRAWN: Final = 2048


@dataclass(frozen=True)
class Inputs:
    """Of one stage, in float32."""

    mean: Tensor  # (K,) magnitude of each channel, rows weighed
    peak: Tensor  # (K,) largest magnitude on any row
    rows: Tensor  # (drawn, K)


class _Sight:
    """What one stage reads, while chunks of the rows go by."""

    def __init__(self, rows: Sequence[Rows], weights: Weights, inner: int, drawn: int) -> None:
        self.weights = [weight.expand(same.hidden.shape[:2]) for weight, same in zip(weights, rows, strict=True)]
        whole = torch.cat([weight.flatten() for weight in self.weights])
        self.total, self.places = whole.sum(), draw(whole, drawn)
        self.starts = [0, *accumulate(weight.numel() for weight in self.weights)]
        self.sum, self.peak = torch.zeros(inner), torch.zeros(inner)
        self.drawn: list[Tensor] = []

    def add(self, chunk: Chunk, x: Tensor) -> None:
        """`x` (n, T, K) is what the stage reads of this chunk."""
        flat = x.flatten(0, 1).float()
        size, weights = flat.abs(), self.weights[chunk.index]
        self.sum += weights[chunk.part].flatten() @ size
        self.peak = torch.maximum(self.peak, size.amax(dim=0))
        first = self.starts[chunk.index] + chunk.part.start * weights.shape[1]
        here = self.places[(self.places >= first) & (self.places < first + len(flat))]
        self.drawn.append(flat[here - first])

    def inputs(self, what: str) -> Inputs:
        if not torch.isfinite(self.peak).all():
            raise NumericError(
                f"{what}: the calibration's activations are not finite: verify the checkpoint and frames"
            )
        if not self.peak.any():
            raise NumericError(f"{what}: no input is ever active: the checkpoint is not a trained policy's")
        return Inputs(self.sum / self.total, self.peak, torch.cat(self.drawn))


@torch.inference_mode()
def observe(
    layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], what: str, drawn: int = DRAWN
) -> list[Inputs]:
    """What each stage of the layer reads, given its input rows, which stay as they are.

    NumericError where a channel is not finite, or where none is ever active.
    """
    shapes = layer.self_attn.spec.linears()
    sights = [_Sight(rows, w, shapes[names[0]][1], drawn) for w, names in zip(weights, STAGES, strict=True)]
    passing: list[Chunk] = []

    def look(sight: _Sight) -> Callable[..., None]:
        return lambda module, given: sight.add(passing[-1], given[0])  # noqa: ARG005

    handles = [
        layer.get_submodule(names[0]).register_forward_pre_hook(look(sight))
        for sight, names in zip(sights, STAGES, strict=True)
    ]
    try:
        for chunk in chunks(layer.self_attn.spec, rows):
            passing[:] = [chunk]
            middle = chunk.hidden + attend(layer, chunk.hidden, chunk.step)
            layer.mlp(layer.post_attention_layernorm(middle))
    finally:
        for handle in handles:
            handle.remove()
    return [sight.inputs(f"{what}, {names[0]}") for sight, names in zip(sights, STAGES, strict=True)]


def draw(weights: Tensor, count: int) -> Tensor:
    """`count` indices into (n,) weights, in order, each as often as its weight says, to within one.

    By equal steps through their running sum: no luck, so the same weights give the same rows.
    """
    running = weights.double().cumsum(0)
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) * (running[-1] / count)
    return torch.searchsorted(running, targets).clamp_(max=len(weights) - 1)
