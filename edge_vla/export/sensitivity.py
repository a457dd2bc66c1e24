"""What each linear costs the answers in each form, measured with the answers' own gradient.

The weight is rounded as the export would round it, on every other sequence; the damage is measured on the others,
because rounding that may choose its errors leaves few of them on the rows it was shown. Then the halves change places:
two measurements that share neither codes nor sequences tell what is noise (`edge_vla.export.shrinkage`).
A damage is the divergence that this one change makes in the action distribution, to second order: the mean over
sequences and probes of (sum over rows of g'dW x)^2 / 2, per action token. One layer is in memory at a time.
Knows layers and formats; the gradient comes from `calibration.answers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import KeysView, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.calibration.answers import Gradients, back_through
from edge_vla.calibration.sequences import Rows, embed
from edge_vla.calibration.stream import STAGES, Weights, quantise_layer
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.data import Frame
from edge_vla.export.gptq import factorise, gptq
from edge_vla.export.vision import MATRIX
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import BYTE, GROUPS, Scheme, dequantise, quantise

NARROW_TO_WIDE: Final = (Scheme.INT2, Scheme.INT3, Scheme.INT4)

FOLDS: Final = 2

Form = tuple[Scheme, int | None]
Damages = Mapping[str, Sequence[Sequence[float]]]  # linear -> [fold][form of `forms`]: mean KL per action token, nats


def forms(inner: int, group: int | None) -> list[Form]:
    """Every way to store a linear of `inner` inputs, fewest bits first; with `group`, in groups of that size only.

    Smaller groups are the steps between the bits: 4 bits in groups of 32 are 4.5 bits a weight.
    """
    sizes = [size for size in (GROUPS if group is None else (group,)) if inner % size == 0]
    schemes = NARROW_TO_WIDE if inner % BYTE == 0 else (Scheme.INT4,)
    grouped: list[Form] = [(scheme, size) for scheme in schemes for size in sizes]
    return [*grouped, (Scheme.INT8, None), (Scheme.BF16, None)]


def measure(
    layer: DecoderLayer, rows: Sequence[Rows], gradients: Gradients, weights: Sequence[Weights], group: int | None
) -> Damages:
    """`rows` are the layer's inputs and `gradients` those at its output; both are left as they are."""
    folds = [_judge(layer, rows, gradients, weights, group, fold) for fold in range(FOLDS)]
    return {name: [fold[name] for fold in folds] for name in folds[0]}


def in_fold(rows: Sequence[Rows], fold: int) -> list[Tensor]:
    """For each `Rows`, (n,) bool: the sequences that a fold rounds on; it is judged on the others."""
    numbers = torch.arange(sum(len(same.hidden) for same in rows), device=rows[0].hidden.device) % FOLDS == fold
    return list(torch.split(numbers, [len(same.hidden) for same in rows]))


def _judge(
    layer: DecoderLayer,
    rows: Sequence[Rows],
    gradients: Gradients,
    weights: Sequence[Weights],
    group: int | None,
    fold: int,
) -> dict[str, list[float]]:
    chosen = in_fold(rows, fold)
    shown = [[part * mask[:, None] for part, mask in zip(stage, chosen, strict=True)] for stage in weights]
    changes = rounding_changes(layer, rows, shown, group)
    sums = {name: [0.0] * len(found) for name, found in changes.items()}

    def watch(name: str, index: int, part: slice, x: Tensor, gradient: Tensor) -> None:
        judged = ~chosen[index][part]
        for place, change in enumerate(changes[name]):
            moved = (F.linear(x[judged], change)[None] * gradient[:, judged]).float().sum(dim=(2, 3))  # (probes, n)
            sums[name][place] += float(moved.square().sum()) / (2 * len(gradient) * rows[index].dims)

    back_through(layer, rows, [[tensor.clone() for tensor in probe] for probe in gradients], watch)
    judged = sum(int((~mask).sum()) for mask in chosen)
    # Three digits: enough to choose by, and no more than the probes give. 16 bits change nothing.
    return {name: [float(f"{total / judged:.3g}") for total in totals] + [0.0] for name, totals in sums.items()}


def vision_damage(checkpoint: Checkpoint, frames: Sequence[Frame], gradients: Gradients) -> float:
    """What int8 towers and projector cost, by the `gradients` at the decoder's input; in the unit of `measure`.

    Embeds the frames twice in float32, because 16-bit arithmetic alone moves an embedding as far as int8 does.
    """
    narrow = dataclasses.replace(checkpoint, tensors=Int8Vision(checkpoint))
    before, after = (embed(source, frames, torch.float32) for source in (checkpoint, narrow))
    total = 0.0
    for index, (rows, moved) in enumerate(zip(before, after, strict=True)):
        change = moved.hidden - rows.hidden
        for probe in gradients:
            total += float((change * probe[index]).sum(dim=(1, 2)).square().sum()) / (2 * len(gradients) * rows.dims)
    return float(f"{total / len(frames):.3g}")


class Int8Vision:
    """A checkpoint's tensors with towers and projector as int8 stores them: a `TensorSource`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors, self.rounded = checkpoint.tensors, set(vision_keys(checkpoint.config.spec))

    def __str__(self) -> str:
        return str(self.tensors)

    def names(self) -> KeysView[str]:
        return self.tensors.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors.shape(name)

    def load(self, name: str) -> Tensor:
        tensor = self.tensors.load(name)
        narrow = name in self.rounded and tensor.ndim == MATRIX
        return dequantise(quantise(tensor, Scheme.INT8, None)) if narrow else tensor


def rounding_changes(
    layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], group: int | None
) -> dict[str, list[Tensor]]:
    """For each linear and form but the last, the change that rounding makes to its weight, in the weight's type."""
    changes: dict[str, list[Tensor]] = {}
    originals = {name: layer.get_parameter(f"{name}.weight") for stage in STAGES for name in stage}

    def look(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
        factor = factorise(hessian, names[0])
        for name in names:
            weight = originals[name]
            changes[name] = [
                (dequantise(gptq(weight, factor, *form)).to(weight.device) - weight.float()).to(weight.dtype)
                for form in forms(weight.shape[1], group)[:-1]
            ]
        return {}

    copies = [Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows]
    quantise_layer(layer, copies, weights, look)
    return changes
