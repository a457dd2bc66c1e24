"""What the linears of a layer read: how large each channel is, and some rows to try changes on.

One pass through the layer as it is. The rows are drawn in proportion to what they count, so that a plain sum over
them stands for the weighted sum over all. Knows the four stages of a layer; nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@torch.inference_mode()
def observe(
    layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], what: str, drawn: int = DRAWN
) -> list[Inputs]:
    """What each stage of the layer reads, given its input rows, which stay as they are.

    NumericError where a channel is not finite, or where none is ever active.
    """
    places = [draw(torch.cat([_every(part, same).flatten() for part, same in zip(w, rows, strict=True)]), drawn)
              for w in weights]  # fmt: skip
    width = [layer.self_attn.spec.linears()[names[0]][1] for names in STAGES]
    sums, peaks = [torch.zeros(k) for k in width], [torch.zeros(k) for k in width]
    found: list[list[Tensor]] = [[] for _ in STAGES]
    starts = [0]
    for same in rows:
        starts.append(starts[-1] + same.hidden.shape[0] * same.length)
    chunk: Chunk

    def read(stage: int) -> Callable[..., None]:
        def hook(module: object, given: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            x = given[0].flatten(0, 1).float()
            counts = _every(weights[stage][chunk.index], rows[chunk.index])[chunk.part].flatten()
            size = x.abs()
            sums[stage] += counts @ size
            torch.maximum(peaks[stage], size.amax(dim=0), out=peaks[stage])
            first = starts[chunk.index] + chunk.part.start * rows[chunk.index].length
            here = places[stage][(places[stage] >= first) & (places[stage] < first + len(x))]
            found[stage].append(x[here - first])

        return hook

    handles = [
        layer.get_submodule(names[0]).register_forward_pre_hook(read(stage)) for stage, names in enumerate(STAGES)
    ]
    try:
        for chunk in chunks(layer.self_attn.spec, rows):
            middle = chunk.hidden + attend(layer, chunk.hidden, chunk.step)
            layer.mlp(layer.post_attention_layernorm(middle))
    finally:
        for handle in handles:
            handle.remove()
    total = [sum(float(_every(part, same).sum()) for part, same in zip(w, rows, strict=True)) for w in weights]
    made = [Inputs(s / t, p, torch.cat(f)) for s, t, p, f in zip(sums, total, peaks, found, strict=True)]
    for one, names in zip(made, STAGES, strict=True):
        if not (torch.isfinite(one.peak).all() and torch.isfinite(one.mean).all()):
            raise NumericError(
                f"{what}, {names[0]}: the calibration's activations are not finite: verify the checkpoint and frames"
            )
        if not one.peak.any():
            raise NumericError(f"{what}, {names[0]}: no input is ever active: the checkpoint is not a trained policy's")
    return made


def draw(weights: Tensor, count: int) -> Tensor:
    """`count` indices into (n,) weights, in order, each as often as its weight says, to within one.

    By equal steps through their running sum: no luck, so the same weights give the same rows.
    """
    running = weights.double().cumsum(0)
    targets = (torch.arange(count, dtype=torch.float64) + 0.5) * (running[-1] / count)
    return torch.searchsorted(running, targets).clamp_(max=len(weights) - 1)


def _every(weights: Tensor, same: Rows) -> Tensor:
    """(n, T): one weight a row, where it was given for all sequences alike."""
    return weights.expand(same.hidden.shape[:2])
