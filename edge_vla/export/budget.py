"""A budget of bytes, spent where answers hang on it most: damages in, formats and the reasons out.

`bits_per_weight` counts the decoder's linears alone. `budget` counts the whole artifact; towers and projector then
compete for it too, unless the recipe has them at 8 bits already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edge_vla.errors import UsageError
from edge_vla.export.allocation import Choice, Plan, allocate, pareto, uniform
from edge_vla.export.preflight import fixed_bytes
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import FOLDS, Damages, Form, forms
from edge_vla.export.shrinkage import shrink
from edge_vla.quant import BYTE, NARROW, Scheme, stored_bytes
from edge_vla.spec import PolicySpec

REPORT_VERSION: Final = 2
VISION_BITS: Final = (8, 16)
WORTH: Final = 0.1  # of the predicted damage that mixing must save: rounding on other frames moves a plan's by 7 %


@dataclass(frozen=True)
class Item:
    """One linear: where it is, and each way to store it with its size and damage."""

    layer: int
    name: str
    shape: tuple[int, int]
    formats: tuple[Form, ...]
    choices: tuple[Choice, ...]
    measured: tuple[float, ...]  # damages as they came, of which `choices` has the noise taken out


@dataclass(frozen=True)
class Spent:
    """`plan` has a pick for each of `items`, and one more for towers and projector where these were to choose.

    `mixed` and `same` are the best plan and the best with one form for all linears; `plan` is one of the two.
    """

    items: Sequence[Item]
    vision: tuple[Choice, ...]
    mixed: Plan
    same: Plan | None
    limit: int
    kept: float

    @property
    def plan(self) -> Plan:
        """The mixed one where it is worth it, else every linear alike."""
        if self.same is None or self.mixed.damage < (1 - WORTH) * self.same.damage:
            return self.mixed
        return self.same

    @property
    def formats(self) -> list[dict[str, Form]]:
        """For each layer, each linear's scheme and group."""
        layers: list[dict[str, Form]] = [{} for _ in range(self.items[-1].layer + 1)]
        for item, pick in self._picked:
            layers[item.layer][item.name] = item.formats[pick]
        return layers

    @property
    def vision_bits(self) -> int | None:
        """Of towers and projector; None where the recipe alone says it."""
        return VISION_BITS[self.plan.picks[-1]] if self.vision else None

    @property
    def _picked(self) -> list[tuple[Item, int]]:
        return list(zip(self.items, self.plan.picks[: len(self.items)], strict=True))

    def report(self) -> dict[str, Any]:
        """For `evidence/sensitivity.json`. Damages are mean KL per action token in nats, sizes are bytes."""
        weights = sum(math.prod(item.shape) for item in self.items)
        linears = [item.choices[pick].size for item, pick in self._picked]
        every = [item.choices for item in self.items] + ([self.vision] if self.vision else [])
        return {
            "version": REPORT_VERSION,
            "limit_bytes": self.limit,
            "linears_bytes": sum(linears),
            "linears_bytes_on_device": sum(_on_device(item.shape, item.formats[pick]) for item, pick in self._picked),
            "bits_per_weight": round(BYTE * sum(linears) / weights, 4),
            "predicted_kl": self.plan.damage,
            "predicted_kl_mixed": self.mixed.damage,
            "predicted_kl_same": self.same.damage if self.same else None,
            "departures_kept": round(self.kept, 3),
            "vision": _vision_report(self.vision, self.vision_bits),
            "linears": [
                {
                    "layer": item.layer,
                    "name": item.name,
                    "weights": math.prod(item.shape),
                    "form": item.choices[pick].name,
                    "choices": [
                        {**dataclasses.asdict(choice), "measured": measured}
                        for choice, measured in zip(item.choices, item.measured, strict=True)
                    ],
                }
                for item, pick in self._picked
            ],
            "pareto": pareto(every),
        }


def trades_vision(recipe: Recipe) -> bool:
    """Whether the bits of towers and projector are chosen by what they cost, like those of the linears."""
    return recipe.budget is not None and recipe.vision_bits == max(VISION_BITS)


def not_chosen(spec: PolicySpec, recipe: Recipe) -> int:
    """Bytes of what no budget chooses about; with `limit` it makes the whole artifact."""
    return fixed_bytes(spec, 0 if trades_vision(recipe) else recipe.vision_bits)


def limit(spec: PolicySpec, recipe: Recipe) -> int:
    """Bytes that may be chosen about; UsageError where even the fewest bits take more.

    They are the decoder's linears, with a budget for everything also towers and projector.
    """
    shapes = spec.decoder.linears()
    floor = spec.decoder.layers * sum(
        min(stored_bytes(form[0], shape, form[1]) for form in forms(shape[1], recipe.group))
        for shape in shapes.values()
    )
    if recipe.bits_per_weight is not None:
        weights = spec.decoder.layers * sum(math.prod(shape) for shape in shapes.values())
        given, told = int(recipe.bits_per_weight * weights / BYTE), f"--bpw {recipe.bits_per_weight:g}"
    else:
        assert recipe.budget is not None, "a mixed recipe has one of the two"
        least = fixed_bytes(spec, min(VISION_BITS) if trades_vision(recipe) else recipe.vision_bits)
        given = recipe.budget - least
        told = f"--budget {recipe.budget / 1e9:g}GB (of which {least / 1e9:g} are not it)"
    if given < floor:
        raise UsageError(
            f"{told} leaves {max(given, 0) / 1e9:g} GB for the decoder's linears, below their floor of {floor / 1e9:g} "
            "GB, which is every one at its fewest bits: give more"
        )
    return given + (_vision_bytes(spec, min(VISION_BITS)) if trades_vision(recipe) else 0)


def spend(spec: PolicySpec, recipe: Recipe, damages: Sequence[Damages], vision_damage: float | None = None) -> Spent:
    """The least summed damage within the recipe's limit. `damages` are by layer; the towers' is what 8 bits do."""
    shapes = spec.decoder.linears()
    where = [(layer, name) for layer in range(len(damages)) for name in shapes]
    columns = list(dict.fromkeys(form for shape in shapes.values() for form in forms(shape[1], recipe.group)))
    folds = np.full((FOLDS, len(where), len(columns)), np.nan)
    for row, (layer, name) in enumerate(where):
        places = [columns.index(form) for form in forms(shapes[name][1], recipe.group)]
        folds[:, row, places] = damages[layer][name]
    estimate, kept = shrink(*folds)
    items = []
    for row, (layer, name) in enumerate(where):
        ways = tuple(forms(shapes[name][1], recipe.group))
        places = [columns.index(form) for form in ways]
        choices = tuple(
            Choice(_named(way), stored_bytes(way[0], shapes[name], way[1]), _rounded(estimate[row, place]))
            for way, place in zip(ways, places, strict=True)
        )
        measured = tuple(_rounded(folds[:, row, place].mean()) for place in places)
        items.append(Item(layer, name, shapes[name], ways, choices, measured))
    vision: tuple[Choice, ...] = ()
    if trades_vision(recipe):
        assert vision_damage is not None, "what is to be chosen about has been measured"
        costs = dict(zip(VISION_BITS, (vision_damage, 0.0), strict=True))
        vision = tuple(Choice(f"{bits} bits", _vision_bytes(spec, bits), cost) for bits, cost in costs.items())
    given = limit(spec, recipe)
    linears = [item.choices for item in items]
    mixed = allocate(linears + ([vision] if vision else []), given)
    return Spent(items, vision, mixed, _same(linears, vision, given), given, kept)


def _same(linears: Sequence[Sequence[Choice]], vision: Sequence[Choice], given: int) -> Plan | None:
    if not vision:
        return uniform(linears, given)
    plans = []
    for pick, choice in enumerate(vision):
        if found := uniform(linears, given - choice.size):
            plans.append(Plan((*found.picks, pick), found.size + choice.size, found.damage + choice.damage))
    return min(plans, key=lambda plan: plan.damage, default=None)


def _vision_report(choices: Sequence[Choice], bits: int | None) -> dict[str, Any] | None:
    return {"bits": bits, "choices": [dataclasses.asdict(choice) for choice in choices]} if choices else None


def _vision_bytes(spec: PolicySpec, bits: int) -> int:
    return fixed_bytes(spec, bits) - fixed_bytes(spec, 0)


def _named(form: Form) -> str:
    scheme, group = form
    return f"{scheme.value} g{group}" if group else scheme.value


def _rounded(damage: float) -> float:
    return float(f"{damage:.3g}")


def _on_device(shape: tuple[int, int], form: Form) -> int:
    """Narrow codes are expanded to int4's at load."""
    scheme, group = form
    return stored_bytes(Scheme.INT4 if scheme in NARROW else scheme, shape, group)
