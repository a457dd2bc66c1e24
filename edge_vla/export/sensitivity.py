"""What each linear costs the answers in each form, measured with the answers' own gradient.

The weight is rounded as the export would round it, on every other sequence; the damage is measured on the others,
because rounding that may choose its errors leaves few of them on the rows it was shown. It is the divergence that this
one change makes in the action distribution, to second order: the mean over sequences and probes of (sum over rows of
g'dW x)^2 / 2, per action token. Knows layers and formats; the gradient comes from `calibration.answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.calibration.answers import Gradients, back_through
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES, Weights, quantise_layer
from edge_vla.export.gptq import factorise, gptq
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import BYTE, GROUPS, Scheme, dequantise

NARROW_TO_WIDE: Final = (Scheme.INT2, Scheme.INT3, Scheme.INT4)

Form = tuple[Scheme, int | None]
Damages = Mapping[str, Sequence[float]]  # linear -> mean KL per action token in nats, for each of `forms`


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
    changes = rounding_changes(layer, rows, [[_even(part) for part in stage] for stage in weights], group)
    sums = {name: [0.0] * len(found) for name, found in changes.items()}
    places = [torch.arange(len(same.hidden)) for same in rows]

    def watch(name: str, index: int, part: slice, x: Tensor, gradient: Tensor) -> None:
        odd = places[index][part] % 2 == 1
        for place, change in enumerate(changes[name]):
            moved = (F.linear(x[odd], change)[None] * gradient[:, odd]).float().sum(dim=(2, 3))  # (probes, n)
            sums[name][place] += float(moved.square().sum()) / (2 * len(gradient) * rows[index].dims)

    copies = [[tensor.clone() for tensor in probe] for probe in gradients]
    back_through(layer, rows, copies, watch)
    judged = sum(len(same.hidden) // 2 for same in rows)
    # Three digits: enough to choose by, and no more than the probes give. 16 bits change nothing.
    return {name: [float(f"{total / judged:.3g}") for total in totals] + [0.0] for name, totals in sums.items()}


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
                (dequantise(gptq(weight, factor, *form)) - weight.float()).to(weight.dtype)
                for form in forms(weight.shape[1], group)[:-1]
            ]
        return {}

    copies = [Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows]
    quantise_layer(layer, copies, weights, look)
    return changes


def _even(weights: Tensor) -> Tensor:
    """(n, T) weights with those of every other sequence zero."""
    mask = torch.arange(len(weights)) % 2 == 0
    return weights * mask[:, None]
