"""One robot's memory of its last action, which saves passes of the next one and never changes it.

`policy.session()` makes one. A `Policy` may have many; they take turns on its network.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image

from edge_vla.errors import UsageError
from edge_vla.runtime.drafts import Bins, drafting

if TYPE_CHECKING:
    from edge_vla.runtime.policy import Action, Policy


class Session:
    """`act` as a policy's, with the previous action as the draft of the next. Calls from several threads are safe.

    Tokens equal those of plain decoding, bit for bit. Without `bitwise_exact` a draft rides in the prefill, which saves part
    of a pass, but then two logits that nearly tie can fall either way, as they can between any two batch shapes.
    """

    def __init__(self, policy: Policy, *, bitwise_exact: bool = True) -> None:
        if policy.head != "actions":
            raise UsageError("a session decodes over the action ids: load the policy with the head 'actions'")
        self.policy, self.bitwise_exact = policy, bitwise_exact
        self._previous: Bins | None = None
        self._lock = threading.Lock()
        self._life = 0  # counts resets: an action begun before a reset leaves nothing behind

    def act(self, image: Image.Image | NDArray[Any], instruction: str, unnorm_key: str | None = None) -> Action:
        """One action. An error leaves the memory as it was: a memory is only ever a guess."""
        with self._lock:
            previous, life = self._previous, self._life
        dims = self.policy.config.statistics[self.policy.config.statistics.resolve(unnorm_key)].dims
        action = self.policy.act(
            image, instruction, unnorm_key, draft=drafting(previous, dims), bitwise_exact=self.bitwise_exact
        )
        first = self.policy.config.spec.action.first
        with self._lock:
            if life == self._life:
                self._previous = tuple(token - first for token in action.tokens)
        return action

    def reset(self) -> None:
        """Forget, as at the start of an episode. Safe while `act` runs in another thread."""
        with self._lock:
            self._previous = None
            self._life += 1
