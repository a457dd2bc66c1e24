"""Guesses at an action before the network gives it. A wrong one costs a pass; it can never change an action.

Knows bins of past actions. Knows nothing of networks, pictures or units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

Bins = tuple[int, ...]
Draft = Callable[[Sequence[int], Sequence[int]], list[int]]
"""Known bins, and the network's latest guess at every dimension (empty before its first) -> bins of all dimensions.

Those of the known dimensions are not looked at.
"""


@dataclass(frozen=True)
class Past:
    """The actions so far, newest first, two at most, and what is fixed: how many bins, a table of transitions."""

    actions: tuple[Bins, ...]
    bins: int
    transitions: Transitions | None = None

    def and_now(self, action: Bins) -> Past:
        return Past((action, *self.actions)[:2], self.bins, self.transitions)


@dataclass(frozen=True)
class Transitions:
    """Which bin most often followed a bin, by dimension: a table counted on recorded episodes."""

    following: tuple[Mapping[int, int], ...]

    @staticmethod
    def count(episodes: Iterable[Sequence[Bins]]) -> Transitions:
        """From episodes of actions in bins. Of equally frequent bins, the one nearest to the bin before."""
        counts: list[dict[int, Counter[int]]] = []
        for episode in episodes:
            for before, after in pairwise(episode):
                counts += [{} for _ in range(len(after) - len(counts))]
                for dim, (old, new) in enumerate(zip(before, after, strict=True)):
                    counts[dim].setdefault(old, Counter())[new] += 1
        return Transitions(
            tuple(
                {old: max(table, key=lambda new: (table[new], -abs(new - old), new)) for old, table in by_bin.items()}
                for by_bin in counts
            )
        )

    def after(self, action: Bins) -> Bins:
        tables = [*self.following, *[{}] * (len(action) - len(self.following))]
        return tuple(table.get(old, old) for table, old in zip(tables, action, strict=False))


def _previous(past: Past) -> Bins | None:
    return past.actions[0] if past.actions else None


def _velocity(past: Past) -> Bins | None:
    """Each dimension goes on as it went between the last two actions."""
    if len(past.actions) < 2 or len(past.actions[0]) != len(past.actions[1]):
        return _previous(past)
    return tuple(
        min(max(2 * new - old, 0), past.bins - 1) for new, old in zip(past.actions[0], past.actions[1], strict=True)
    )


def _table(past: Past) -> Bins | None:
    previous = _previous(past)
    return previous if previous is None or past.transitions is None else past.transitions.after(previous)


@dataclass(frozen=True)
class Kind:
    """How the first draft is made, and whether what it missed is drafted again by the network's own guesses."""

    first: Callable[[Past], Bins | None]
    jacobi: bool = field(default=True)


KINDS: Final[Mapping[str, Kind]] = {
    "none": Kind(lambda past: None),  # noqa: ARG005
    "previous": Kind(_previous),
    "previous, kept": Kind(_previous, jacobi=False),
    "velocity": Kind(_velocity),
    "transitions": Kind(_table),
}


def drafting(kind: Kind, past: Past, dims: int) -> Draft | None:
    """The draft of the next action; None where there is nothing to go by."""
    first = kind.first(past)
    if first is None or len(first) != dims:
        return None

    def draft(known: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
        return [*guesses, *first[len(guesses) :]] if kind.jacobi else list(first)

    return draft
