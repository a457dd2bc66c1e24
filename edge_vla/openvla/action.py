"""Action tokens: bins, their centres, and the way from token ids to normalised values and back.

Knows the id range and nothing of robot units: those are `statistics`' business. The last id before the padding
stands for the lowest bin. With n edges there are n - 1 centres, so the two lowest ids decode to the same value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.spec import ActionSpec

Floats = NDArray[np.float64]

DIMENSIONS: Final = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")  # of every data set that OpenVLA was trained on


def dimension_names(dims: int) -> tuple[str, ...]:
    """Names of an action's numbers; of another count than OpenVLA's seven, the numbers themselves."""
    return DIMENSIONS if dims == len(DIMENSIONS) else tuple(map(str, range(dims)))


@dataclass(frozen=True)
class ActionTokens:
    spec: ActionSpec

    @cached_property
    def edges(self) -> Floats:
        return np.linspace(self.spec.low, self.spec.high, self.spec.bins)

    @cached_property
    def centres(self) -> Floats:
        """(bins - 1,) float64, ascending."""
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    def is_action(self, token: int) -> bool:
        return self.spec.first <= token < self.spec.end

    def bins(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """Index of each token's centre; ids outside the action range are clipped, as upstream does."""
        ids = np.asarray(tokens, dtype=np.int64)
        return np.clip(self.spec.end - ids - 1, 0, self.spec.bins - 2)

    def decode(self, tokens: Sequence[int]) -> Floats:
        """Token ids -> normalised action in (low, high), float64."""
        return self.centres[self.bins(tokens)]

    def encode(self, normalised: Floats) -> NDArray[np.int64]:
        """Normalised action -> token ids, as in OpenVLA's training data."""
        clipped = np.clip(np.asarray(normalised, dtype=np.float64), self.spec.low, self.spec.high)
        return np.asarray(self.spec.end - np.digitize(clipped, self.edges), dtype=np.int64)
