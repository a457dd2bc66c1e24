"""Scales moved out of a linear's input and into its weight: the same function, in numbers that round better.

An input is divided where it is produced: in the norm before it, or in the rows of the one linear that produces it
(v_proj for o_proj, up_proj for down_proj). The columns of its readers are multiplied. The exponent a is searched:

- SmoothQuant (Xiao et al., arXiv:2211.10438): s = max|x|^a / max|w|^(1-a), so that activations round well to 8 bits.
- AWQ (Lin et al., arXiv:2306.00978): s = mean|x|^a, so that the weights of large inputs round well to few bits.

Each stage takes the exponent that changes its outputs least on calibration rows; no scaling is the first candidate and
wins ties. Knows one layer's matrices; nothing of files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from edge_vla.calibration.inputs import Inputs
from edge_vla.calibration.stream import STAGES
from edge_vla.export.formats import Format, LayerFormats
from edge_vla.export.units import Scaling
from edge_vla.quant import Scheme, dequantise, quantise, sixteen
from edge_vla.runtime.kernels.w8a8 import round_rows
from edge_vla.spec import DecoderSpec

LOG: Final = logging.getLogger("edge_vla.export.smoothing")
Rule = Literal["smoothquant", "awq"]
Candidate = tuple[float | None, Tensor]  # exponent, None for no scaling; (K,) scales
EXPONENTS: Final = tuple(step / 20 for step in range(21))
LARGEST: Final = 2.0**14  # and its inverse: a weight times this still has a scale that fp16 holds
OUTPUTS: Final = 1024  # of each linear are compared: evenly spaced ones, where it has more
NORM_BEFORE: Final = {0: "input_layernorm.weight", 2: "post_attention_layernorm.weight"}  # by stage
LINEAR_BEFORE: Final = {1: "self_attn.v_proj", 3: "mlp.up_proj"}


@dataclass(frozen=True)
class Fold:
    """One layer's scales. What is not named stays as it is."""

    norms: Mapping[str, Tensor] = field(default_factory=dict)  # new weights, 16 bits
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # linear -> (K,) float32, multiplied by
    rows: Mapping[str, Tensor] = field(default_factory=dict)  # linear -> (N,) float32, divided by
    scalings: Mapping[str, Scaling] = field(default_factory=dict)  # by the first linear of each stage

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """A (N, K) weight as it is to be quantised: itself, or scaled in float32."""
        if name in self.columns:
            weight = weight.float() * self.columns[name]
        if name in self.rows:
            weight = weight.float() / self.rows[name][:, None]
        return weight


def smooth(
    rule: Rule,
    spec: DecoderSpec,
    inputs: Sequence[Inputs],
    weights: Mapping[str, Tensor],
    norms: Mapping[str, Tensor],
    formats: LayerFormats,
    what: str,
    exponent: float | None = None,
) -> Fold:
    """The scales of one layer, whose linears are `weights` and whose norms are `norms`, as stored.

    A given `exponent` is not searched. `what` names the layer in warnings.
    """
    new_norms, columns, rows, scalings = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor](), {}
    for stage, names in enumerate(STAGES):
        found = [weights[name] for name in names]
        given, read = inputs[stage], largest(found)
        if stage == 1:  # o_proj reads a value head once for each query head that shares it
            given = Inputs(tied(given.mean, spec), tied(given.peak, spec), given.rows)
            read = tied(read, spec)
        exponents = EXPONENTS if exponent is None else (exponent,)
        plain: list[Candidate] = [(None, torch.ones_like(given.peak))] if exponent is None else []
        candidates = plain + [(a, scales(rule, given, read, a)) for a in exponents]
        if (dead := int((given.peak == 0).sum())) > 0:
            LOG.warning("%s, %s: %d of %d inputs are never active, not scaled", what, names[0], dead, len(given.peak))
        chosen, error = search(given.rows, found, [formats[name] for name in names], candidates)
        scale = candidates[chosen][1]
        if stage in NORM_BEFORE:
            new_norms[NORM_BEFORE[stage]], scale = divided(norms[NORM_BEFORE[stage]], scale, f"{what}, {names[0]}")
        else:
            rows[LINEAR_BEFORE[stage]] = value_rows(scale, spec) if stage == 1 else scale
        columns |= dict.fromkeys(names, scale)
        scalings[names[0]] = Scaling(candidates[chosen][0], error)
        LOG.info("%s, %s: exponent %s leaves %.2f of the error", what, names[0], candidates[chosen][0], error)
    return Fold(new_norms, columns, rows, scalings)


def largest(weights: Sequence[Tensor]) -> Tensor:
    """(K,) float32: the largest weight that each input is multiplied by."""
    return torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)


def scales(rule: Rule, inputs: Inputs, read: Tensor, exponent: float) -> Tensor:
    """(K,) float32, 1 for channels that are never active or never read; `read` is `largest` of the weights."""
    alive = (inputs.peak > 0) & (read > 0)
    if rule == "smoothquant":
        found = inputs.peak[alive] ** exponent / read[alive] ** (1 - exponent)
    else:
        found = inputs.mean[alive] ** exponent
        found = found / (found.amax() * found.amin()).sqrt()
    whole = torch.ones_like(inputs.peak)
    whole[alive] = found.clamp(1 / LARGEST, LARGEST)
    return whole


def search(
    rows: Tensor,
    weights: Sequence[Tensor],
    formats: Sequence[Format],
    candidates: Sequence[Candidate],
) -> tuple[int, float]:
    """Which candidate changes the outputs on `rows` (m, K) least, and its error over the unscaled one's."""
    some = [weight[:: -(-len(weight) // OUTPUTS)].float() for weight in weights]
    errors = [output_error(rows, some, formats, scale) for _, scale in candidates]
    plain = output_error(rows, some, formats, torch.ones(rows.shape[1]))
    least = min(range(len(errors)), key=errors.__getitem__)
    return least, errors[least] / plain if plain else 1.0


def output_error(rows: Tensor, weights: Sequence[Tensor], formats: Sequence[Format], scale: Tensor) -> float:
    """Squared change of all outputs when weights times `scale` are rounded to nearest, and for w8a8 the inputs too."""
    total = 0.0
    for weight, (scheme, group) in zip(weights, formats, strict=True):
        rounded = dequantise(quantise(weight * scale, scheme, group))
        given = rows / scale
        if scheme is Scheme.W8A8:
            codes, steps = round_rows(given)
            given = codes.float() * steps
        total += float((given @ rounded.T - rows @ weight.T).square().sum(dtype=torch.float64))
    return total


def divided(norm: Tensor, scale: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """A norm's weight over `scale`, in its own 16 bits, and what it was in fact divided by: (K,) float32.

    So the columns make up for that rounding too. Channels that 16 bits cannot hold stay as they are, with a warning.
    """
    stored = sixteen(norm)
    new = (stored.float() / scale).to(stored.dtype)
    held = (new.float().abs() >= torch.finfo(new.dtype).tiny) & torch.isfinite(new)
    lost = ~held & (stored != 0)
    if lost.any():
        LOG.warning("%s: %d norm weights are too small or too large to be scaled", what, int(lost.sum()))
    new = torch.where(held, new, stored)
    return new, torch.where(held, stored.float() / new.float(), 1.0)


def tied(values: Tensor, spec: DecoderSpec) -> Tensor:
    """(width,) over what o_proj reads: the largest value among channels that share a row of v_proj, for all of them."""
    by_head = values.view(spec.kv_heads, -1, spec.head_width)
    return by_head.amax(dim=1, keepdim=True).expand_as(by_head).reshape(-1)


def value_rows(scale: Tensor, spec: DecoderSpec) -> Tensor:
    """o_proj's column scales (width,) as scales of v_proj's rows (kv_width,)."""
    return scale.view(spec.kv_heads, -1, spec.head_width)[:, 0].reshape(-1)
