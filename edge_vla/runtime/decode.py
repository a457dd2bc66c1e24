"""Draft and verify: the one loop that turns a network's predictions into an action's tokens.

Knows bins and margins. Knows nothing of tensors or devices, so any `Predictor` runs it. Whatever is drafted, the
tokens are those of plain decoding: a prediction counts only where everything before it was predicted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_vla.errors import UsageError
from edge_vla.runtime.types import Decision, Draft, Predictions, Predictor


@dataclass
class Decoding:
    """What is known of one action: the bins of its first dimensions, and their margins."""

    dims: int
    bins: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)  # the network's latest prediction of every dimension
    passes: int = 0

    @property
    def known(self) -> int:
        return len(self.bins)

    def accept(self, found: Predictions) -> None:
        """Keep each prediction whose given bins are the known ones."""
        best = found.bins[: self.dims - found.first]
        self.guesses[found.first :] = best
        self.passes += found.passes
        for dim in range(self.known, found.first + len(best)):
            if found.given[:dim] != self.bins[:dim]:
                break
            self.bins.append(best[dim - found.first])
            self.margins.append(found.margins[dim - found.first])

    def decision(self, drafted: Sequence[int], first_id: int) -> Decision:
        return Decision(
            tokens=tuple(first_id + index for index in self.bins),
            margins=tuple(self.margins),
            drafted=tuple(first_id + index for index in drafted),
            passes=self.passes,
        )


def decode(predictor: Predictor, dims: int, first_id: int, draft: Draft | None = None) -> Decision:
    """Decide all dimensions; `first_id` is the token of bin 0. What a draft missed is drafted again."""
    action, propose = Decoding(dims), draft or _nothing
    drafted = propose((), ())
    action.accept(predictor.prefill(drafted[: dims - 1]))
    while action.known < dims:
        guessed = propose(action.bins, action.guesses)[action.known :]
        action.accept(predictor.verify([*action.bins, *guessed][: dims - 1], action.known))
    return action.decision(drafted, first_id)


def checked(draft: Draft, dims: int, bins: int) -> Draft:
    """The same strategy; UsageError for what it may not propose, before an engine looks a bin up in a table."""

    def check(known: Sequence[int], guesses: Sequence[int]) -> list[int]:
        proposed = draft(known, guesses)
        wrong = [one for one in proposed if not 0 <= one < bins]
        if wrong or len(proposed) not in (0, dims):
            raise UsageError(
                f"the draft strategy proposed {list(proposed)}: expected {dims} bins from 0 to {bins - 1}, or none"
            )
        return proposed

    return check


def _nothing(known: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
    """Plain decoding: no dimension is guessed."""
    return []
