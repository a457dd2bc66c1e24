"""A budget of bytes, spent where the action depends on it most: KL costs in, formats and the reasons out.

`bits_per_weight` counts the decoder's linears alone. `budget` counts the whole artifact; towers and projector then
compete for it too, unless the recipe stores them in 8 bits already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_vla.errors import UsageError
from edge_vla.export.allocation import Plan, allocate, pareto, uniform
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
class Item:
    """One linear, its candidate formats, and what each takes and costs."""

    layer: int
    name: str
    shape: tuple[int, int]
    formats: tuple[Format, ...]
    choices: tuple[Choice, ...]


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
    items, residual_kept = _items(spec, recipe, kl_costs)
    vision = _vision_choices(spec, vision_kl_cost) if recipe.chooses_vision_bits else ()
    linears, available = [item.choices for item in items], limit(spec, recipe)
    mixed = allocate([*linears, *([vision] if vision else [])], available)
    same = _uniform(linears, vision, available)
    plan = mixed if same is None or mixed.kl_cost < (1 - MIN_SAVING) * same.kl_cost else same
    picked = list(zip(items, plan.picks, strict=False))  # the last pick may be that of towers and projector
    vision_bits = VISION_BITS[plan.picks[-1]] if vision else None
    formats: list[dict[str, Format]] = [{} for _ in kl_costs]
    for item, pick in picked:
        formats[item.layer][item.name] = item.formats[pick]
    linears_bytes = sum(item.choices[pick].bytes for item, pick in picked)
    report = SensitivityReport(
        limit_bytes=available,
        linears_bytes=linears_bytes,
        linears_bytes_on_device=sum(item.formats[pick].device_bytes(item.shape) for item, pick in picked),
        bits_per_weight=round(BYTE * linears_bytes / linear_weights(spec.decoder), 4),
        predicted_kl=plan.kl_cost,
        predicted_kl_mixed=mixed.kl_cost,
        predicted_kl_uniform=same.kl_cost if same else None,
        residual_kept=round(residual_kept, 3),
        vision=VisionChoices(vision_bits, vision[plan.picks[-1]].format, vision) if vision_bits else None,
        linears=tuple(
            LinearChoices(item.layer, item.name, math.prod(item.shape), item.choices[pick].format, item.choices)
            for item, pick in picked
        ),
        pareto=pareto([*linears, *([vision] if vision else [])]),
    )
    return Spending(formats, vision_bits, report)


def _items(spec: PolicySpec, recipe: Recipe, kl_costs: Sequence[KlCosts]) -> tuple[list[Item], float]:
    """Every linear with its shrunk KL costs, and the share of the residual that shrinkage kept."""
    shapes = spec.decoder.linears()
    where = [(layer, name) for layer in range(len(kl_costs)) for name in shapes]
    by_linear = {name: candidates(shape[1], recipe.group) for name, shape in shapes.items()}
    columns = list(dict.fromkeys(form for formats in by_linear.values() for form in formats))
    places = {name: [columns.index(form) for form in formats] for name, formats in by_linear.items()}
    folds = np.full((FOLDS, len(where), len(columns)), np.nan)
    for row, (layer, name) in enumerate(where):
        folds[:, row, places[name]] = kl_costs[layer][name]
    estimate, residual_kept = shrink(*folds)
    items = []
    for row, (layer, name) in enumerate(where):
        choices = tuple(
            Choice(
                str(form),
                form.bytes(shapes[name]),
                kl_cost=_three_digits(estimate[row, place]),
                measured_kl_cost=_three_digits(folds[:, row, place].mean()),
            )
            for form, place in zip(by_linear[name], places[name], strict=True)
        )
        items.append(Item(layer, name, shapes[name], tuple(by_linear[name]), choices))
    return items, residual_kept


def _vision_choices(spec: PolicySpec, int8_cost: float | None) -> tuple[Choice, ...]:
    assert int8_cost is not None, "it is measured where the budget chooses"
    costs = zip(VISION_BITS, (int8_cost, 0.0), strict=True)
    return tuple(Choice(f"{bits} bits", vision_bytes(spec, bits), cost) for bits, cost in costs)


def _uniform(linears: Sequence[Sequence[Choice]], vision: Sequence[Choice], available: int) -> Plan | None:
    """The best plan with one format for all linears."""
    if not vision:
        return uniform(linears, available)
    plans = []
    for pick, choice in enumerate(vision):
        if found := uniform(linears, available - choice.bytes):
            plans.append(Plan((*found.picks, pick), found.bytes + choice.bytes, found.kl_cost + choice.kl_cost))
    return min(plans, key=lambda plan: plan.kl_cost, default=None)


def _three_digits(kl_cost: float) -> float:
    return float(f"{kl_cost:.3g}")
