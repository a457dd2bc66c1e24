"""A budget of bytes, spent where the action depends on it most: KL costs in, formats and the reasons out.

`bits_per_weight` counts the decoder's linears alone. `budget` counts the whole artifact; towers and projector then
compete for it too, unless the recipe stores them in 8 bits already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_vla.errors import UsageError
from edge_vla.export.allocation import allocate, pareto, uniform
from edge_vla.export.formats import Format, Formats, candidates
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import FOLDS
from edge_vla.export.shrinkage import shrink
from edge_vla.export.sizes import fixed_bytes, linear_weights, vision_bytes
from edge_vla.export.units import KlCosts
from edge_vla.quant import BYTE
from edge_vla.sensitivity import Choice, LinearChoices, SensitivityReport, VisionChoices
from edge_vla.spec import PolicySpec

VISION_BITS: Final = (8, 16)
MIN_SAVING: Final = 0.1  # of the KL cost that mixing must save: on other frames, rounding moves a plan's cost by 7 %


@dataclass(frozen=True)
class Spending:
    """How a budget is spent. `vision_bits` is None where the budget does not choose them."""

    formats: Formats
    vision_bits: int | None
    report: SensitivityReport


def limit(spec: PolicySpec, recipe: Recipe) -> int:
    """The bytes that a mixed recipe lets the solver spend, on linears and, if it chooses them, towers and projector.

    UsageError where even the fewest bits everywhere take more.
    """
    shapes = spec.decoder.linears().values()
    smallest = spec.decoder.layers * sum(
        min(form.bytes(shape) for form in candidates(shape[1], recipe.group)) for shape in shapes
    )
    if recipe.bits_per_weight is not None:
        option, rest = f"--bpw {recipe.bits_per_weight:g}", 0
        total = int(recipe.bits_per_weight * linear_weights(spec.decoder) / BYTE)
    else:
        assert recipe.budget is not None, "a mixed recipe has one of the two"
        rest = fixed_bytes(spec) + vision_bytes(
            spec, min(VISION_BITS) if recipe.chooses_vision_bits else recipe.vision_bits
        )
        option, total = f"--budget {recipe.budget / 1e9:g}GB, of which {rest / 1e9:g} GB is fixed,", recipe.budget
    if total - rest < smallest:
        raise UsageError(
            f"{option} leaves {max(total - rest, 0) / 1e9:g} GB for the decoder's linears, below their floor of "
            f"{smallest / 1e9:g} GB, the fewest bits everywhere: give more"
        )
    return total - rest + (vision_bytes(spec, min(VISION_BITS)) if recipe.chooses_vision_bits else 0)


def spend(
    spec: PolicySpec, recipe: Recipe, kl_costs: Sequence[KlCosts], vision_kl_cost: float | None = None
) -> Spending:
    """The formats of least summed KL cost within the recipe's limit: mixed where that is worth it, else uniform.

    `kl_costs` are by layer; `vision_kl_cost` is that of int8 towers and projector.
    """
    shapes, available = spec.decoder.linears(), limit(spec, recipe)
    options = {name: candidates(shape[1], recipe.group) for name, shape in shapes.items()}
    linears, residual_kept = _linear_choices(shapes, options, kl_costs)
    vision = [_vision_choices(spec, vision_kl_cost)] if recipe.chooses_vision_bits else []
    mixed = allocate([*linears.values(), *vision], available)
    same = uniform(list(linears.values()), available, vision)
    plan = mixed if same is None or mixed.kl_cost < (1 - MIN_SAVING) * same.kl_cost else same
    picks = dict(zip(linears, plan.picks, strict=False))  # the last pick may be that of towers and projector
    formats: list[dict[str, Format]] = [{} for _ in kl_costs]
    for (layer, name), pick in picks.items():
        formats[layer][name] = options[name][pick]
    linears_bytes = sum(linears[where][pick].bytes for where, pick in picks.items())
    vision_bits = VISION_BITS[plan.picks[-1]] if vision else None
    report = SensitivityReport(
        limit_bytes=available,
        linears_bytes=linears_bytes,
        linears_bytes_on_device=sum(form.device_bytes(shapes[n]) for layer in formats for n, form in layer.items()),
        bits_per_weight=round(BYTE * linears_bytes / linear_weights(spec.decoder), 4),
        predicted_kl=plan.kl_cost,
        predicted_kl_mixed=mixed.kl_cost,
        predicted_kl_uniform=same.kl_cost if same else None,
        residual_kept=round(residual_kept, 3),
        vision=VisionChoices(bits=vision_bits, format=_bits(vision_bits), choices=vision[0]) if vision_bits else None,
        linears=tuple(
            LinearChoices(
                layer=layer,
                name=name,
                weights=math.prod(shapes[name]),
                format=str(options[name][pick]),
                choices=linears[layer, name],
            )
            for (layer, name), pick in picks.items()
        ),
        pareto=pareto([*linears.values(), *vision]),
    )
    return Spending(formats, vision_bits, report)


def _linear_choices(
    shapes: Mapping[str, tuple[int, int]], options: Mapping[str, Sequence[Format]], kl_costs: Sequence[KlCosts]
) -> tuple[dict[tuple[int, str], tuple[Choice, ...]], float]:
    """For each layer and linear its formats with their shrunk KL costs, and the share of the residual that was kept."""
    where = [(layer, name) for layer in range(len(kl_costs)) for name in shapes]
    columns = list(dict.fromkeys(form for formats in options.values() for form in formats))
    places = {name: [columns.index(form) for form in formats] for name, formats in options.items()}
    folds = np.full((FOLDS, len(where), len(columns)), np.nan)
    for row, (layer, name) in enumerate(where):
        folds[:, row, places[name]] = kl_costs[layer][name]
    estimate, residual_kept = shrink(*folds)
    found = {}
    for row, (layer, name) in enumerate(where):
        found[layer, name] = tuple(
            Choice(
                str(form),
                form.bytes(shapes[name]),
                kl_cost=_three_digits(estimate[row, place]),
                measured_kl_cost=_three_digits(folds[:, row, place].mean()),
            )
            for form, place in zip(options[name], places[name], strict=True)
        )
    return found, residual_kept


def _vision_choices(spec: PolicySpec, int8_cost: float | None) -> tuple[Choice, ...]:
    assert int8_cost is not None, "it is measured where the budget chooses"
    costs = zip(VISION_BITS, (int8_cost, 0.0), strict=True)
    return tuple(Choice(_bits(bits), vision_bytes(spec, bits), cost) for bits, cost in costs)


def _bits(bits: int) -> str:
    return f"{bits} bits"


def _three_digits(kl_cost: float) -> float:
    return float(f"{kl_cost:.3g}")
