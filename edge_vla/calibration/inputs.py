"""The inputs of a layer's linears: how large each channel is, and sample rows to try changes on.

One pass through the layer as it is. Rows are drawn in proportion to their weight, so that a plain sum over the sample
stands for the weighted sum over all rows. Knows the four stages of a layer; nothing of formats.
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

SAMPLES: Final = 2048


@dataclass(frozen=True)
class Inputs:
    """Of one stage, in float32; K is in_features."""

    mean: Tensor  # (K,) weighted mean magnitude of each channel
    peak: Tensor  # (K,) largest magnitude on any row
    rows: Tensor  # (samples, K)


class _Observer:
    """Collects what one stage reads while chunks of the rows pass."""

    def __init__(self, rows: Sequence[Rows], weights: Weights, in_features: int, samples: int) -> None:
        self.weights = [weight.expand(same.hidden.shape[:2]) for weight, same in zip(weights, rows, strict=True)]
        whole = torch.cat([weight.flatten() for weight in self.weights])
        self.total, self.places = whole.sum(), draw(whole, samples)
        self.starts = [0, *accumulate(weight.numel() for weight in self.weights)]
        self.sum, self.peak = torch.zeros(in_features), torch.zeros(in_features)
        self.samples: list[Tensor] = []

    def add(self, chunk: Chunk, x: Tensor) -> None:
        """`x` (n, T, K) is what the stage reads of this chunk."""
        flat = x.flatten(0, 1).float()
        size, weights = flat.abs(), self.weights[chunk.index]
        self.sum += weights[chunk.part].flatten() @ size
        self.peak = torch.maximum(self.peak, size.amax(dim=0))
        first = self.starts[chunk.index] + chunk.part.start * weights.shape[1]
        here = self.places[(self.places >= first) & (self.places < first + len(flat))]
        self.samples.append(flat[here - first])

    def inputs(self, what: str) -> Inputs:
        if not torch.isfinite(self.peak).all():
            raise NumericError(f"{what}: calibration activations are not finite: verify the checkpoint and the frames")
        if not self.peak.any():
            raise NumericError(f"{what}: no input is ever active: expected the checkpoint of a trained policy")
        return Inputs(self.sum / self.total, self.peak, torch.cat(self.samples))


@torch.inference_mode()
def observe(
    layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], what: str, samples: int = SAMPLES
) -> list[Inputs]:
    """What each stage of the layer reads, given the layer's input rows, which stay as they are.

    `what` names the layer in errors: NumericError where a channel is not finite, or where none is ever active.
    """
    shapes = layer.self_attn.spec.linears()
    observers = [_Observer(rows, w, shapes[names[0]][1], samples) for w, names in zip(weights, STAGES, strict=True)]
    passing: list[Chunk] = []

    def hook(observer: _Observer) -> Callable[..., None]:
        return lambda module, given: observer.add(passing[-1], given[0])  # noqa: ARG005

    handles = [
        layer.get_submodule(names[0]).register_forward_pre_hook(hook(observer))
        for observer, names in zip(observers, STAGES, strict=True)
    ]
    try:
        for chunk in chunks(layer.self_attn.spec, rows):
            passing[:] = [chunk]
            middle = chunk.hidden + attend(layer, chunk.hidden, chunk.step)
            layer.mlp(layer.post_attention_layernorm(middle))
    finally:
        for handle in handles:
            handle.remove()
    return [one.inputs(f"{what}, {names[0]}") for one, names in zip(observers, STAGES, strict=True)]


def draw(weights: Tensor, count: int) -> Tensor:
    """`count` ascending indices into (n,) weights, each as often as its weight says, to within one.

    Systematic sampling: equal steps through the running sum, so the same weights give the same rows.
    """
    running = weights.double().cumsum(0)
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) * (running[-1] / count)
    return torch.searchsorted(running, targets).clamp_(max=len(weights) - 1)
