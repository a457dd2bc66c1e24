"""The decode loop on a network that is a table: whatever is drafted, tokens are those of plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import UsageError
from edge_vla.runtime.decode import checked, decode
from edge_vla.runtime.types import Decision, Draft, Predictions

FIRST = 1000  # the token of bin 0
BINS = 4  # few, so that drafts are often right by chance


@dataclass
class Table:
    """A network whose bin and margin depend on the bins before them, and on nothing else.

    `in_prefill`: guesses are verified in the prefill. `whole`: each pass predicts all dimensions, as the GPU engine.
    `steps`: what no draft reaches is decoded in one call, as the C engine.
    """

    dims: int
    seed: int
    in_prefill: bool = False
    whole: bool = False
    steps: bool = False
    calls: list[tuple[int, ...]] = field(default_factory=list)

    def of(self, before: Sequence[int]) -> tuple[int, float]:
        draw = Random(f"{self.seed} {list(before)}")
        return draw.randrange(BINS), draw.random()

    def after(self, given: list[int], first: int, passes: int) -> Predictions:
        found = [self.of(given[:dim]) for dim in range(first, min(len(given) + 1, self.dims))]
        return Predictions(first, [one for one, _ in found], [margin for _, margin in found], given, passes)

    def prefill(self, guesses: list[int]) -> Predictions:
        self.calls.append(tuple(guesses))
        return self.after(guesses if self.in_prefill else [], 0, passes=0)

    def verify(self, given: list[int], known: int) -> Predictions:
        self.calls.append(tuple(given))
        assert 1 <= known <= len(given) < self.dims
        if not self.steps or len(given) > known:
            return self.after(given, 0 if self.whole else known, passes=1)
        answer = list(given)
        while len(answer) < self.dims:
            answer.append(self.of(answer)[0])
        return self.after(answer[:-1], known, passes=self.dims - known)


def plain(dims: int, seed: int) -> Decision:
    """The oracle: each dimension from those before it."""
    table, bins, margins = Table(dims, seed), list[int](), list[float]()
    for _ in range(dims):
        one, margin = table.of(bins)
        bins, margins = [*bins, one], [*margins, margin]
    return Decision(tuple(FIRST + one for one in bins), tuple(margins), passes=dims - 1)


networks = st.builds(
    Table, st.integers(1, 8), st.integers(0, 5), in_prefill=st.booleans(), whole=st.booleans(), steps=st.booleans()
)


@given(networks)
def test_without_a_draft(table: Table) -> None:
    assert decode(table, table.dims, FIRST) == plain(table.dims, table.seed)


@given(networks, st.randoms(use_true_random=False))
def test_any_draft_gives_plain_tokens_and_margins(table: Table, chance: Random) -> None:
    """Also one that changes its mind, is short or long, and disagrees with what is known."""
    asked = list[int]()

    def draft(known: Sequence[int], guesses: Sequence[int]) -> list[int]:
        assert len(guesses) in (0, table.dims)[: 1 + bool(known)] or len(guesses) >= len(known)
        asked.append(len(known))
        return [chance.randrange(BINS) for _ in range(chance.randrange(table.dims + 2))]

    decision, expected = decode(table, table.dims, FIRST, draft), plain(table.dims, table.seed)
    assert (decision.tokens, decision.margins) == (expected.tokens, expected.margins)
    assert decision.passes <= table.dims - 1
    assert asked == sorted(set(asked)), "each pass decides at least one dimension"


def of(bins: Sequence[int]) -> Draft:
    """First these, then the network's own guesses."""
    return lambda known, guesses: [*guesses, *bins[len(guesses) :]]


@given(networks, st.integers(0, 8))
def test_passes_saved_are_the_dimensions_drafted_right(table: Table, right: int) -> None:
    expected = plain(table.dims, table.seed)
    truth = [token - FIRST for token in expected.tokens]
    wrong = [(one + 1) % BINS for one in truth]
    draft = [*truth[:right], *wrong[right:]]
    decision = decode(table, table.dims, FIRST, of(draft))
    assert decision.tokens == expected.tokens
    assert decision.drafted == tuple(FIRST + one for one in draft)
    if right >= table.dims - 1:
        assert decision.passes == (0 if table.in_prefill or table.dims == 1 else 1)
    assert 1 + len(table.calls) <= 2 + table.dims - min(right, table.dims - 1)


def test_a_prediction_behind_a_wrong_guess_does_not_count() -> None:
    table = Table(4, 0, in_prefill=True)
    truth = [token - FIRST for token in plain(4, 0).tokens]
    wrong = (truth[1] + 1) % BINS
    decision = decode(table, 4, FIRST, lambda known, guesses: [truth[0], wrong, 0, 0] if not known else [])
    assert decision.tokens == plain(4, 0).tokens
    assert table.calls[1][:2] == tuple(truth[:2]), "the first two were decided by the prefill, the rest anew"


@given(st.lists(st.integers(-3, BINS + 2), max_size=6), st.integers(1, 4))
def test_a_draft_of_something_else_is_refused(proposed: list[int], dims: int) -> None:
    """Before an engine looks it up in a table of embeddings: on a GPU that ends the process."""
    draft = checked(lambda known, guesses: proposed, dims, BINS)
    if len(proposed) in (0, dims) and all(0 <= one < BINS for one in proposed):
        assert draft((), ()) == proposed
    else:
        with pytest.raises(UsageError, match=f"expected {dims} bins from 0 to {BINS - 1}"):
            draft((), ())
