"""The KL cost of each linear in each format, measured with the gradient of the action distribution.

A weight is quantised as the export would do it, on every other sequence; its cost is measured on the rest, because
quantising chooses its errors to suit the rows that it was given. Then the halves change places: two measurements that
share neither codes nor sequences show what is noise (`export.shrinkage`).
A KL cost is the divergence that this one change makes in the action distribution, to second order: the mean over
sequences and probes of (sum over rows of g'dW x)^2 / 2, per action token. One layer is in memory at a time.
Knows layers and formats; the gradient comes from `calibration.action_gradients`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.calibration.action_gradients import Gradients, backpropagate_
from edge_vla.calibration.sequences import Rows, embed
from edge_vla.calibration.stream import STAGES, Weights, quantise_layer
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.data import Frame
from edge_vla.export.formats import candidates
from edge_vla.export.gptq import factorise, gptq
from edge_vla.export.units import KlCosts
from edge_vla.export.vision import MATRIX
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import Scheme, dequantise, quantise

FOLDS: Final = 2


def measure(
    layer: DecoderLayer, rows: Sequence[Rows], gradients: Gradients, weights: Sequence[Weights], group: int | None
) -> KlCosts:
    """The KL costs of one layer's linears.

    `rows` are the layer's inputs and `gradients` those at its output; both stay as they are.
    """
    folds = [_measure_fold(layer, rows, gradients, weights, group, fold) for fold in range(FOLDS)]
    return {name: [fold[name] for fold in folds] for name in folds[0]}


def in_fold(rows: Sequence[Rows], fold: int) -> list[Tensor]:
    """For each `Rows`, (n,) bool: the sequences that a fold quantises on; it measures on the others."""
    numbers = torch.arange(sum(len(same.hidden) for same in rows), device=rows[0].hidden.device) % FOLDS == fold
    return list(torch.split(numbers, [len(same.hidden) for same in rows]))


def _measure_fold(
    layer: DecoderLayer,
    rows: Sequence[Rows],
    gradients: Gradients,
    weights: Sequence[Weights],
    group: int | None,
    fold: int,
) -> dict[str, list[float]]:
    chosen = in_fold(rows, fold)
    masked = [[part * mask[:, None] for part, mask in zip(stage, chosen, strict=True)] for stage in weights]
    changes = rounding_changes(layer, rows, masked, group)
    sums = {name: [0.0] * len(found) for name, found in changes.items()}

    def watch(name: str, index: int, part: slice, x: Tensor, gradient: Tensor) -> None:
        held_out = ~chosen[index][part]
        for place, change in enumerate(changes[name]):
            moved = (F.linear(x[held_out], change)[None] * gradient[:, held_out]).float().sum(dim=(2, 3))
            sums[name][place] += float(moved.square().sum()) / (2 * len(gradient) * rows[index].dims)

    backpropagate_(layer, rows, [[tensor.clone() for tensor in probe] for probe in gradients], watch)
    sequences = sum(int((~mask).sum()) for mask in chosen)
    # Three digits: enough to choose by, and no more than the probes give. 16 bits change nothing.
    return {name: [float(f"{total / sequences:.3g}") for total in totals] + [0.0] for name, totals in sums.items()}


def vision_kl_cost(checkpoint: Checkpoint, frames: Sequence[Frame], gradients: Gradients) -> float:
    """The KL cost of int8 towers and projector, by the `gradients` at the decoder's input; in the unit of `measure`.

    Embeds the frames twice in float32, because 16-bit arithmetic alone moves an embedding as far as int8 does.
    """
    before = embed(checkpoint, frames, torch.float32)
    after = embed(checkpoint, frames, torch.float32, vision=int8_vision(checkpoint))
    total = 0.0
    for index, (rows, moved) in enumerate(zip(before, after, strict=True)):
        change = moved.hidden - rows.hidden
        for probe in gradients:
            total += float((change * probe[index]).sum(dim=(1, 2)).square().sum()) / (2 * len(gradients) * rows.dims)
    return float(f"{total / len(frames):.3g}")


def int8_vision(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of towers and projector with every matrix rounded to int8."""
    weights = {name: checkpoint.tensors.load(name) for name in vision_keys(checkpoint.config.spec)}
    return {
        name: dequantise(quantise(weight, Scheme.INT8, None)) if weight.ndim == MATRIX else weight
        for name, weight in weights.items()
    }


def rounding_changes(
    layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], group: int | None
) -> dict[str, list[Tensor]]:
    """For each linear and candidate format but 16 bits, the change (N, K) of its weight, in the weight's type."""
    changes: dict[str, list[Tensor]] = {}
    originals = {name: layer.get_parameter(f"{name}.weight") for stage in STAGES for name in stage}

    def round_all(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
        factor = factorise(hessian, names[0])
        for name in names:
            weight = originals[name]
            changes[name] = [
                (dequantise(gptq(weight, factor, *form)).to(weight.device) - weight.float()).to(weight.dtype)
                for form in candidates(weight.shape[1], group)[:-1]
            ]
        return {}

    copies = [Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows]
    quantise_layer(layer, copies, weights, round_all)
    return changes
