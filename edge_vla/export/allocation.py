"""A format for each linear within a budget of bytes: the exact minimum of the summed KL cost, by dynamic programming.

The one approximation is that KL costs, each measured alone, add up. Knows numbers only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import UsageError
from edge_vla.sensitivity import Choice, ParetoPoint

MAX_UNITS: Final = 200_000  # of the budget; sizes are rounded up to a unit, so a plan always fits

Items = Sequence[Sequence[Choice]]


@dataclass(frozen=True)
class Plan:
    """`picks[i]` is an index into the choices of item `i`."""

    picks: tuple[int, ...]
    bytes: int
    kl_cost: float

    @staticmethod
    def of(items: Items, picks: Sequence[int]) -> Plan:
        chosen = [item[pick] for item, pick in zip(items, picks, strict=True)]
        return Plan(tuple(picks), sum(c.bytes for c in chosen), math.fsum(c.kl_cost for c in chosen))


def allocate(items: Items, budget: int) -> Plan:
    """The plan of least KL cost within `budget` bytes; UsageError if even the smallest choices take more.

    Exact where the sizes' common divisor is at least a unit, as it is for every network of even widths.
    """
    floor = sum(min(choice.bytes for choice in item) for item in items)
    if budget < floor:
        raise UsageError(f"a budget of {budget} bytes is below the floor of {floor}, the fewest bits everywhere")
    unit = _unit(items, budget)
    table, taken = _solve(items, budget // unit, unit)
    return _trace(items, taken, unit, int(np.argmin(table)))


def uniform(items: Items, budget: int, others: Items = ()) -> Plan | None:
    """The best plan within `budget` bytes that stores all `items` in the same format, and `others` in any.

    None if none fits.
    """
    plans = []
    for name in sorted(set.intersection(*({choice.format for choice in item} for item in items))):
        same = [[choice.format for choice in item].index(name) for item in items]
        for free in itertools.product(*(range(len(item)) for item in others)):
            plans.append(Plan.of([*items, *others], [*same, *free]))
    return min((plan for plan in plans if plan.bytes <= budget), key=lambda plan: plan.kl_cost, default=None)


def pareto(items: Items, points: int = 60) -> tuple[ParetoPoint, ...]:
    """Least KL cost by bytes, from the fewest bits everywhere to the most, ascending."""
    most = sum(max(choice.bytes for choice in item) for item in items)
    unit = _unit(items, most)
    table, taken = _solve(items, most // unit, unit)
    floor = int(np.argmax(np.isfinite(table)))
    ends = np.unique(np.linspace(floor, most // unit, points).astype(np.int64))
    plans = [_trace(items, taken, unit, int(np.argmin(table[: end + 1]))) for end in ends]
    return tuple(ParetoPoint(*pair) for pair in sorted({(plan.bytes, plan.kl_cost) for plan in plans}))


def _unit(items: Items, budget: int) -> int:
    return max(math.gcd(*(choice.bytes for item in items for choice in item)), -(-budget // MAX_UNITS))


def _solve(items: Items, units: int, unit: int) -> tuple[NDArray[np.float64], list[NDArray[np.int8]]]:
    """The least KL cost that takes exactly so many units, and for each item the choice that leads there."""
    table = np.full(units + 1, np.inf)
    table[0] = 0.0
    taken = []
    for item in items:
        best, which = np.full(units + 1, np.inf), np.zeros(units + 1, np.int8)
        for index, choice in enumerate(item):
            cost = -(-choice.bytes // unit)
            if cost > units:
                continue
            there = np.full(units + 1, np.inf)
            there[cost:] = table[: units + 1 - cost] + choice.kl_cost
            better = there < best
            best[better], which[better] = there[better], index
        table = best
        taken.append(which)
    return table, taken


def _trace(items: Items, taken: Sequence[NDArray[np.int8]], unit: int, units: int) -> Plan:
    """The plan that ends at so many units."""
    picks: list[int] = []
    for item, which in zip(reversed(items), reversed(taken), strict=True):
        picks.append(int(which[units]))
        units -= -(-item[picks[-1]].bytes // unit)
    return Plan.of(items, picks[::-1])
