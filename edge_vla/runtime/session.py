"""One robot's memory of its last action, which saves passes of the next one and never changes it.

`policy.session()` makes one. A policy may have many; they take turns on its network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from edge_vla.arguments import typed
from edge_vla.runtime.types import Action, Bins, Draft


class Session:
    """`act` as a policy's, with the previous action as the draft of the next. Calls from several threads are safe.

    With `bitwise_exact`, tokens equal those of plain decoding bit for bit. Without it drafts are verified inside the
    prefill, which saves part of a pass, but two logits that nearly tie can fall either way, as between any two batch
    shapes.
    """

    def __init__(
        self, act: Callable[..., Action], dims: Callable[[str | None], int], first_id: int, *, bitwise_exact: bool
    ) -> None:
        self._act, self._dims, self._first_id, self.bitwise_exact = act, dims, first_id, bitwise_exact
        self._previous: Bins | None = None
        self._lock = threading.Lock()
        self._resets = 0  # an action begun before a reset leaves nothing behind

    @typed("image")
    def act(self, image: Image.Image | NDArray[Any], instruction: str, unnorm_key: str | None = None) -> Action:
        """One action. Raises as `Policy.act`; an error leaves the memory as it was."""
        with self._lock:
            previous, resets = self._previous, self._resets
        draft = repeat(previous, self._dims(unnorm_key))
        action = self._act(image, instruction, unnorm_key, draft=draft, bitwise_exact=self.bitwise_exact)
        with self._lock:
            if resets == self._resets:
                self._previous = tuple(token - self._first_id for token in action.tokens)
        return action

    @typed()
    def reset(self) -> None:
        """Forget, as at the start of an episode. Safe while `act` runs in another thread."""
        with self._lock:
            self._previous = None
            self._resets += 1


def repeat(previous: Bins | None, dims: int) -> Draft | None:
    """The strategy that drafts the previous action; None where that is no action of `dims` dimensions.

    What it missed is guessed by the network: each pass also predicts what follows the miss. Other strategies were
    measured and did not pay: benchmarks/cpu/draft_strategies.py.
    """
    if previous is None or len(previous) != dims:
        return None

    def draft(known: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
        return [*guesses, *previous[len(guesses) :]]

    return draft
