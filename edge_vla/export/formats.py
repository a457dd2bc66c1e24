"""The formats that a decoder linear can be stored in, and those that a recipe gives to every linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from edge_vla.export.recipe import Recipe
from edge_vla.quant import BYTE, GROUPS, NARROW, Scheme, plan, stored_bytes
from edge_vla.spec import DecoderSpec

NARROW_TO_WIDE: Final = (Scheme.INT2, Scheme.INT3, Scheme.INT4)


class Format(NamedTuple):
    """A scheme, and how many in_features share a scale; None where an output row has one, or none."""

    scheme: Scheme
    group: int | None

    def __str__(self) -> str:
        return f"{self.scheme.value} g{self.group}" if self.group else self.scheme.value

    def bytes(self, shape: tuple[int, int]) -> int:
        """What a weight of this (out_features, in_features) takes on disk."""
        return stored_bytes(self.scheme, shape, self.group)

    def device_bytes(self, shape: tuple[int, int]) -> int:
        """What it takes in memory: int2 and int3 run as int4."""
        return stored_bytes(Scheme.INT4 if self.scheme in NARROW else self.scheme, shape, self.group)


LayerFormats = Mapping[str, Format]  # by the linear's name
Formats = Sequence[LayerFormats]  # by layer


def candidates(in_features: int, group: int | None) -> list[Format]:
    """Every format for a linear of so many in_features, fewest bits first; with `group`, in groups of that size only.

    Smaller groups are steps between the bits: 4 bits in groups of 32 are 4.5 bits a weight.
    """
    groups = [size for size in (GROUPS if group is None else (group,)) if in_features % size == 0]
    schemes = NARROW_TO_WIDE if in_features % BYTE == 0 else (Scheme.INT4,)
    grouped = [Format(scheme, size) for scheme in schemes for size in groups]
    return [*grouped, Format(Scheme.INT8, None), Format(Scheme.BF16, None)]


def same_everywhere(spec: DecoderSpec, recipe: Recipe) -> Formats:
    """The formats of a recipe without a budget; UsageError for a group that does not divide a linear's in_features."""
    variants = {Scheme.INT8: Scheme.W8A8} if recipe.rounds_activations else {}
    variants |= {Scheme.INT4: Scheme.UINT4} if recipe.asymmetric else {}
    layer = {}
    for name, (_, in_features) in spec.linears().items():
        scheme, group = plan(recipe.bits, in_features, recipe.group, name)
        layer[name] = Format(variants.get(scheme, scheme), group)
    return [layer] * spec.layers
