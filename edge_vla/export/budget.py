"""A budget of bytes, spent on the linears that answers hang on most: damages in, formats and the reasons out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_vla.errors import UsageError
from edge_vla.export.allocation import Choice, Plan, allocate, pareto
from edge_vla.export.preflight import fixed_bytes
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import Damages, Form, forms
from edge_vla.quant import BYTE, NARROW, Scheme, stored_bytes
from edge_vla.spec import PolicySpec


@dataclass(frozen=True)
class Item:
    """One linear: where it is, and each way to store it with its size and damage."""

    layer: int
    name: str
    shape: tuple[int, int]
    formats: tuple[Form, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Spent:
    items: Sequence[Item]
    plan: Plan
    limit: int

    @property
    def formats(self) -> list[dict[str, Form]]:
        """For each layer, each linear's scheme and group."""
        layers: list[dict[str, Form]] = [{} for _ in range(self.items[-1].layer + 1)]
        for item, pick in zip(self.items, self.plan.picks, strict=True):
            layers[item.layer][item.name] = item.formats[pick]
        return layers

    def report(self) -> dict[str, Any]:
        """For `evidence/sensitivity.json`. Damages are mean KL per action token in nats, sizes are bytes."""
        weights = sum(math.prod(item.shape) for item in self.items)
        picked = [(item, item.formats[pick]) for item, pick in zip(self.items, self.plan.picks, strict=True)]
        return {
            "limit_bytes": self.limit,
            "linears_bytes": self.plan.size,
            "linears_bytes_on_device": sum(_on_device(item.shape, form) for item, form in picked),
            "bits_per_weight": round(BYTE * self.plan.size / weights, 4),
            "predicted_kl": self.plan.damage,
            "linears": [
                {
                    "layer": item.layer,
                    "name": item.name,
                    "form": item.choices[pick].name,
                    "choices": [dataclasses.asdict(choice) for choice in item.choices],
                }
                for item, pick in zip(self.items, self.plan.picks, strict=True)
            ],
            "pareto": pareto([item.choices for item in self.items]),
        }


def limit(spec: PolicySpec, recipe: Recipe) -> int:
    """Bytes that the decoder's linears may take; UsageError where even the fewest bits take more."""
    linears = list(spec.decoder.linears().items())
    if recipe.bits_per_weight is not None:
        weights = spec.decoder.layers * sum(math.prod(shape) for _, shape in linears)
        given, told = int(recipe.bits_per_weight * weights / BYTE), f"--bpw {recipe.bits_per_weight:g}"
    else:
        assert recipe.budget is not None, "a mixed recipe has one of the two"
        fixed = fixed_bytes(spec, recipe.vision_bits)
        given, told = recipe.budget - fixed, f"--budget {recipe.budget / 1e9:g}GB (of which {fixed / 1e9:g} are not it)"
    floor = spec.decoder.layers * sum(
        min(stored_bytes(form[0], shape, form[1]) for form in forms(shape[1], recipe.group)) for _, shape in linears
    )
    if given < floor:
        raise UsageError(
            f"{told} leaves {max(given, 0) / 1e9:g} GB for the decoder's linears, below their floor of {floor / 1e9:g} "
            "GB, which is every one at its fewest bits: give more"
        )
    return given


def spend(spec: PolicySpec, recipe: Recipe, damages: Sequence[Damages]) -> Spent:
    """The least summed damage within the recipe's budget. `damages` are by layer."""
    items = []
    for layer, found in enumerate(damages):
        for name, shape in spec.decoder.linears().items():
            ways = forms(shape[1], recipe.group)
            choices = tuple(
                Choice(f"{scheme.value}" + (f" g{group}" if group else ""), stored_bytes(scheme, shape, group), damage)
                for (scheme, group), damage in zip(ways, found[name], strict=True)
            )
            items.append(Item(layer, name, shape, tuple(ways), choices))
    given = limit(spec, recipe)
    return Spent(items, allocate([item.choices for item in items], given), given)


def _on_device(shape: tuple[int, int], form: Form) -> int:
    """Narrow codes are expanded to int4's at load."""
    scheme, group = form
    return stored_bytes(Scheme.INT4 if scheme in NARROW else scheme, shape, group)
