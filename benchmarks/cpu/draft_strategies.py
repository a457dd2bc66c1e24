"""Draft strategies: ways to guess an action before the network decides it. `benchmarks.cpu.drafts` measures each.

A session uses `previous`: the action before, then the network's own guesses. The others were tried. Knows bins and one
hidden state. Knows nothing of pictures, episodes or clocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.session import repeat
from edge_vla.runtime.types import Bins, Draft

EPOCHS: Final = 40
BATCH: Final = 256
RATE: Final = 2e-2


@dataclass(frozen=True)
class Known:
    """What a strategy may use on a frame. `plain`, the right answer, is for simulated strategies only."""

    past: Sequence[Bins]  # the episode's last actions, newest first, at most two
    bins: int
    hidden: Tensor  # (width,): the prefill's last row; empty where no strategy needs it
    transitions: Transitions
    heads: Mapping[bool, Heads]  # with and without the previous action as an input
    plain: Bins
    bitwise_exact: bool  # drafts wait for the prefill


def previous(known: Known) -> Draft | None:
    return repeat(known.past[0], len(known.plain)) if known.past else None


def kept(known: Known) -> Draft | None:
    """The previous action, and nothing else after a miss."""
    return (lambda bins, guesses: list(known.past[0])) if known.past else None  # noqa: ARG005


def velocity(known: Known) -> Draft | None:
    """Each dimension changes again by as much as between the last two actions."""
    if len(known.past) < 2:
        return previous(known)
    pairs = zip(known.past[0], known.past[1], strict=True)
    return repeat(tuple(min(max(2 * new - old, 0), known.bins - 1) for new, old in pairs), len(known.plain))


def transitions(known: Known) -> Draft | None:
    return repeat(known.transitions.after(known.past[0]), len(known.plain)) if known.past else None


def head(known: Known) -> Draft | None:
    """A linear classifier on the prefill's hidden state for each dimension."""
    return repeat(known.heads[False](known.hidden, None), len(known.plain))


def head_and_past(known: Known) -> Draft | None:
    """The same, with the previous action beside the hidden state."""
    return repeat(known.heads[True](known.hidden, known.past[0] if known.past else None), len(known.plain))


@dataclass
class Tree:
    """Simulates a tree draft: the next bin up and down beside each drafted bin, as far as `rows` rows allow.

    Where the truth is such a neighbour, the pass would also have predicted what follows it. So the draft gets that
    dimension right, which takes as many passes as the tree would; where no dimension follows, the loop makes a pass
    that a tree would not need, counted in `saved_passes`.
    """

    first: Bins
    plain: Bins
    rows: int
    bitwise_exact: bool
    saved_passes: int = 0
    _given: list[int] = field(default_factory=list)  # inputs of the last pass
    _from: int = 0  # its first drafted dimension

    def __call__(self, known: Sequence[int], guesses: Sequence[int]) -> list[int]:
        dims, missed, begin = len(self.plain), len(known) - 1, len(known)
        draft = [*guesses, *self.first[len(guesses) :]]
        if self._beside(missed) and abs(self._given[missed] - self.plain[missed]) == 1:
            if missed + 1 < dims - 1:
                draft[missed + 1] = self.plain[missed + 1]
                begin += 1
            elif missed + 1 == dims - 1:
                self.saved_passes += 1
        self._given = [] if self.bitwise_exact and not known else [*known, *draft[len(known) :]]
        self._from = begin
        return draft

    def _beside(self, dim: int) -> bool:
        """Whether the last pass held neighbours of this dimension. A prefill holds those of all."""
        if not self._given:
            return False
        free = self.rows - (len(self.plain) - self._from)  # the last known row and the drafted ones come first
        return self._from == 0 or dim < self._from + free // 2


def tree(rows: int) -> Callable[[Known], Draft | None]:
    return lambda known: Tree(known.past[0], known.plain, rows, known.bitwise_exact) if known.past else None


STRATEGIES: Final[Mapping[str, Callable[[Known], Draft | None]]] = {
    "none": lambda known: None,  # noqa: ARG005
    "previous": previous,
    "previous, kept": kept,
    "velocity": velocity,
    "transitions": transitions,
    "neighbours, 8 rows": tree(8),
    "neighbours, 16 rows": tree(16),
    "head": head,
    "head and previous": head_and_past,
}
AFTER_PREFILL: Final = ("head", "head and previous")  # they need its output, so cannot be verified in it


@dataclass(frozen=True)
class Transitions:
    """The bin that most often followed each bin, by dimension, counted on recorded episodes."""

    following: tuple[Mapping[int, int], ...]

    @staticmethod
    def count(episodes: Iterable[Sequence[Bins]]) -> Transitions:
        """From episodes of actions in bins. Of equally frequent bins the one nearest to the bin before counts."""
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


class Heads:
    """A linear classifier for each dimension, on the prefill's hidden state and, with `past`, its previous bin."""

    def __init__(self, hidden: Tensor, before: Sequence[Bins | None], actions: Sequence[Bins], bins: int, past: bool):
        """Fitted to (n, width) hidden states and the network's actions there; `before` are the actions before."""
        dims, width = len(actions[0]), hidden.shape[1]
        self.mean, self.deviation, self.past = hidden.mean(0), hidden.std(0) + 1e-6, past
        self.start = (bins,) * dims  # stands for the action before the first
        self.weight = torch.zeros(dims, width, bins, requires_grad=True)
        self.bias = torch.zeros(dims, bins, requires_grad=True)
        self.previous = torch.zeros(dims, bins + 1, bins, requires_grad=past)
        targets, old = torch.tensor(actions), torch.tensor([one or self.start for one in before])
        weights = [self.weight, self.bias, *[self.previous] * past]
        optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.1)
        batches, generator = len(hidden) // BATCH + 1, torch.Generator().manual_seed(0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(hidden), generator=generator).tensor_split(batches):
                scores = self._scores(hidden[rows], old[rows])
                loss = F.cross_entropy(scores.flatten(0, 1), targets[rows].flatten())
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        for weight in weights:
            weight.requires_grad_(False)

    def __call__(self, hidden: Tensor, before: Bins | None) -> Bins:
        scores = self._scores(hidden[None], torch.tensor([before or self.start]))
        return tuple(scores[0].argmax(-1).tolist())

    def _scores(self, hidden: Tensor, before: Tensor) -> Tensor:
        """(n, width), (n, dims) -> (n, dims, bins)."""
        scores = torch.einsum("nw,dwb->ndb", (hidden - self.mean) / self.deviation, self.weight) + self.bias
        return scores + self.previous[torch.arange(before.shape[1]), before] if self.past else scores
