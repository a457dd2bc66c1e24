"""Bits for each linear under a budget of bytes: the exact minimum of the summed damage, by dynamic programming.

Damages are taken to add up, each measured alone; that is the one approximation. Knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import UsageError

MOST_UNITS: Final = 200_000  # of the budget; sizes are rounded up to a unit, so a plan always fits


@dataclass(frozen=True)
class Choice:
    """One way to store one linear."""

    name: str
    size: int  # bytes
    damage: float


@dataclass(frozen=True)
class Plan:
    """`picks[i]` is an index into the choices of item `i`."""

    picks: tuple[int, ...]
    size: int
    damage: float


def allocate(items: Sequence[Sequence[Choice]], budget: int) -> Plan:
    """The choice for every item that has the least damage within `budget` bytes; UsageError below the floor.

    Exact where the sizes' common divisor is no less than a unit, as it is for every network of even widths.
    """
    floor = sum(min(choice.size for choice in item) for item in items)
    if budget < floor:
        raise UsageError(
            f"a budget of {budget} bytes is below the floor of {floor}, everything at its fewest bits: give more"
        )
    unit = _unit(items, budget)
    table, taken = _solve(items, budget // unit, unit)
    return _trace(items, taken, unit, int(np.argmin(table)))


def uniform(items: Sequence[Sequence[Choice]], budget: int) -> Plan | None:
    """The best plan within `budget` that stores every item the same way, by the choices' names; None if none fits."""
    shared = set.intersection(*({choice.name for choice in item} for item in items))
    plans = []
    for name in sorted(shared):
        picks = tuple([choice.name for choice in item].index(name) for item in items)
        chosen = [item[pick] for item, pick in zip(items, picks, strict=True)]
        plans.append(Plan(picks, sum(c.size for c in chosen), math.fsum(c.damage for c in chosen)))
    return min((plan for plan in plans if plan.size <= budget), key=lambda plan: plan.damage, default=None)


def pareto(items: Sequence[Sequence[Choice]], points: int = 60) -> list[dict[str, float]]:
    """Least damage by size, from the floor to everything at its widest: rows of `bytes` and `damage`."""
    most = sum(max(choice.size for choice in item) for item in items)
    unit = _unit(items, most)
    table, taken = _solve(items, most // unit, unit)
    floor = int(np.argmax(np.isfinite(table)))
    ends = np.unique(np.linspace(floor, most // unit, points).astype(np.int64))
    plans = [_trace(items, taken, unit, int(np.argmin(table[: end + 1]))) for end in ends]
    return [{"bytes": size, "damage": damage} for size, damage in sorted({(p.size, p.damage) for p in plans})]


def _unit(items: Sequence[Sequence[Choice]], budget: int) -> int:
    return max(math.gcd(*(choice.size for item in items for choice in item)), -(-budget // MOST_UNITS))


def _solve(
    items: Sequence[Sequence[Choice]], units: int, unit: int
) -> tuple[NDArray[np.float64], list[NDArray[np.int8]]]:
    """Least damage that spends exactly so many units, and for each item the choice that got there."""
    table = np.full(units + 1, np.inf)
    table[0] = 0.0
    taken = []
    for item in items:
        best, which = np.full(units + 1, np.inf), np.zeros(units + 1, np.int8)
        for index, choice in enumerate(item):
            cost = -(-choice.size // unit)
            if cost > units:
                continue
            there = np.full(units + 1, np.inf)
            there[cost:] = table[: units + 1 - cost] + choice.damage
            better = there < best
            best[better], which[better] = there[better], index
        table = best
        taken.append(which)
    return table, taken


def _trace(items: Sequence[Sequence[Choice]], taken: Sequence[NDArray[np.int8]], unit: int, spent: int) -> Plan:
    picks: list[int] = []
    for item, which in zip(reversed(items), reversed(taken), strict=True):
        picks.append(int(which[spent]))
        spent -= -(-item[picks[-1]].size // unit)
    chosen = [item[pick] for item, pick in zip(items, reversed(picks), strict=True)]
    return Plan(
        tuple(reversed(picks)), sum(choice.size for choice in chosen), math.fsum(choice.damage for choice in chosen)
    )
