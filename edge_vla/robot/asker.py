"""A policy in a thread of its own, so that one that is late, or never comes back, holds up neither loop nor stop.

One question at a time: while the policy is busy with an old picture it is not asked about the next. An answer that was
not waited for is thrown away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from edge_vla.robot.faces import Picture
from edge_vla.robot.units import Floats

SLICE_S: Final = 0.05  # between two looks at whether the loop is to end


@dataclass(frozen=True, eq=False)
class Answer:
    """`values` (dims,) in the policy's units. `valid_until`, where the policy says it, in monotonic seconds."""

    values: Floats
    valid_until: float | None = None


class NoAction(Exception):  # noqa: N818 - an answer, if not the one that was hoped for
    """Why the policy gave no action this time. `reason` in two or three words, to be counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Actor(Protocol):
    """A policy with its instruction, here or behind a server."""

    def act(self, picture: Picture, deadline: float) -> Answer:
        """Not wanted any more after `deadline`. NoAction where this picture gets none; any other error ends the run."""

    def reset(self) -> None:
        """An episode begins."""

    def close(self) -> None: ...


class Asker:
    """`ask`, then `answer`, from the loop's thread."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._changed = threading.Condition()
        self._question: tuple[Picture, float] | None = None
        self._answer: Answer | BaseException | None = None
        self._asked, self._closed = 0, False
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._question is not None

    def ask(self, picture: Picture, deadline: float) -> bool:
        """False where the policy is still busy with an earlier picture."""
        with self._changed:
            if self._question is not None:
                return False
            self._question, self._answer = (picture, deadline), None
            self._asked += 1
            self._changed.notify_all()
            return True

    def answer(self, until: float, ended: Callable[[], bool]) -> Answer | None:
        """What the policy said to the last question; None where that did not come in time. Raises what it raised."""
        with self._changed:
            while self._answer is None and not ended() and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, SLICE_S))
            found, self._answer = self._answer, None
            if found is None:
                self._asked += 1  # whatever comes now answers a question that nobody asks any more
            if isinstance(found, BaseException):
                raise found
            return found

    def close(self, wait_s: float = 1.0) -> bool:
        """Whether the policy's thread has ended: False for one that does not come back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._question is None and not self._closed:
                    self._changed.wait()
                if self._closed or self._question is None:
                    return
                (picture, deadline), number = self._question, self._asked
            found: Answer | BaseException
            try:
                found = self._actor.act(picture, deadline)
            except BaseException as error:  # noqa: BLE001 - raised in the loop's thread
                found = error
            with self._changed:
                self._question = None
                if number == self._asked:
                    self._answer = found
                self._changed.notify_all()
