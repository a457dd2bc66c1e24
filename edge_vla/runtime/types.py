"""What engines return, and what a policy asks of an engine. Imports no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.openvla.action import dimension_names
from edge_vla.openvla.evaluation import Preprocess
from edge_vla.runtime.network import Network

Bins = tuple[int, ...]
Draft = Callable[[Sequence[int], Sequence[int]], list[int]]
"""A draft strategy: known bins, and the network's latest guess at every dimension (empty before its first) -> bins of
all dimensions. Those of the known dimensions are ignored. A wrong draft costs a pass; it never changes an action."""

Mark = Callable[[str], None]
"""Called with a stage's name when the stage is over."""


def unmarked(stage: str) -> None:
    """A `Mark` for callers that keep no time."""


class Predictions(NamedTuple):
    """What one pass predicts for the dimensions from `first` on: the bin of dimension d follows `given[:d]`."""

    first: int
    bins: list[int]
    margins: list[float]
    given: list[int]
    passes: int  # of the decoder after the prefill


class Predictor(Protocol):
    """One action's network, as the decode loop sees it."""

    def prefill(self, guesses: list[int]) -> Predictions:
        """Image and prompt, and as many of the guessed bins as the engine wants in the same pass."""

    def verify(self, given: list[int], known: int) -> Predictions:
        """What follows the given bins; the first `known` (at least one) are decided, the others guessed."""


@dataclass(frozen=True)
class Decision:
    """Token ids and their margins (logits). `drafted` are the ids first proposed, where a session drafts."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    drafted: tuple[int, ...] = ()
    passes: int = 0  # of the decoder after the prefill


@dataclass(frozen=True, eq=False)
class Action:
    """`values` (dims,) float64 in robot units, writable. `clipped[i]` marks a token that was no action id.

    `margins`: each token's logit minus the second best, NaN-free. `kernels`: what ran, by weight format and part.
    `timing_ms`: milliseconds by stage, in order, and `total`. `passes` and `drafted` as in `Decision`.
    `preprocess`: what was done to the image before OpenVLA's own preprocessing. `numpy.array(action)` is `values`, and
    `action.named` has them by dimension: metres and radians a step in OpenVLA's own data sets, the gripper 1 for open.
    """

    values: NDArray[np.float64]
    tokens: tuple[int, ...]
    unnorm_key: str
    margins: tuple[float, ...]
    clipped: tuple[bool, ...]
    kernels: Mapping[str, str]
    timing_ms: Mapping[str, float]
    passes: int = 0
    drafted: tuple[int, ...] = ()
    preprocess: Preprocess = "none"

    @property
    def named(self) -> dict[str, float]:
        """x, y, z, roll, pitch, yaw, gripper; by number where there are other than seven."""
        return dict(zip(dimension_names(len(self.values)), map(float, self.values), strict=True))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy is not False)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": list(self.tokens),
            "action": self.values.tolist(),
            "unnorm_key": self.unnorm_key,
            "margins": [round(margin, 6) for margin in self.margins],
            "clipped": list(self.clipped),
            "kernels": dict(self.kernels),
            "passes": self.passes,
            "preprocess": self.preprocess,
            "timing_ms": {stage: round(value, 3) for stage, value in self.timing_ms.items()},
        }


class Engine(Protocol):
    """Decides one action at a time; a policy lets its callers take turns."""

    @property
    def network(self) -> Network:
        """The parts, and which kernels run them."""

    @property
    def full_vocabulary(self) -> bool:
        """Whether tokens are chosen among all ids, as upstream does, instead of the action ids. Drafts are ignored."""

    def decide(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32],
        dims: int,
        draft: Draft | None = None,
        *,
        bitwise_exact: bool = False,
        mark: Mark = unmarked,
    ) -> Decision:
        """The best token of each of `dims` dimensions, for prompt ids and pixel values (3 x towers, H, W).

        With `bitwise_exact`, tokens and margins are the same with and without a draft. Without it a draft is verified
        inside the prefill where `prefill_matches_step`, which saves part of a pass, and near-ties can fall either
        way. Raises NumericError for a non-finite logit, ResourceError where memory runs out, DeviceLostError once the
        device has failed.
        """

    def warm(self, prompts: Iterable[int], dims: int, *, longest: int = 0) -> None:
        """Prepare for prompts of these lengths, so that no action waits for it, and room for `longest` tokens."""

    def forced(self, prompt: tuple[int, ...], image: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Hidden states (dims, width) that predict each of `tokens`, given the image embeddings and earlier tokens."""
