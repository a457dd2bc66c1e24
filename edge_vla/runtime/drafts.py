"""A guess at an action before the network gives it. A wrong one costs a pass; it can never change an action.

The first guess is the action before. What it missed is guessed again by the network itself: at each pass it also
says what it would have answered behind the miss. Other first guesses were measured and did not pay:
`benchmarks.cpu.draft_strategies`. Knows bins. Knows nothing of networks, pictures or units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Bins = tuple[int, ...]
Draft = Callable[[Sequence[int], Sequence[int]], list[int]]
"""Known bins, and the network's latest guess at every dimension (empty before its first) -> bins of all dimensions.

Those of the known dimensions are not looked at.
"""


def drafting(first: Bins | None, dims: int) -> Draft | None:
    """The draft that begins with `first`; None where that is no action of `dims` dimensions."""
    if first is None or len(first) != dims:
        return None

    def draft(known: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
        return [*guesses, *first[len(guesses) :]]

    return draft
