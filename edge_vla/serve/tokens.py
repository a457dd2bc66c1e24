"""Who may ask, how often, and over how many connections: a token each, read from a file that no log ever shows.

Who asks is known where a connection begins, and limited where an observation is asked for, whatever its protocol: the
context that a connection's tasks share says who it is.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from edge_vla.errors import UsageError
from edge_vla.serve.messages import Code, RefusedError

SHORTEST: Final = 16  # characters
BUSY_S: Final = 1.0  # when another connection may be free
FORM: Final = "TOKEN [OBSERVATIONS A SECOND] [CONNECTIONS]"


@dataclass(frozen=True)
class Token:
    """A secret, how many observations a second it may ask for, and how many WebSockets it may hold at a time."""

    secret: str
    per_second: float = math.inf
    connections: float = math.inf


class Caller:
    """One token's use. A second's worth of observations may come at once."""

    def __init__(self, token: Token, clock: Callable[[], float] = time.monotonic) -> None:
        self.token, self._clock = token, clock
        self._most = max(1.0, token.per_second)
        self._left, self._at, self._open = self._most, clock(), 0

    def spend(self) -> None:
        """Ask for one observation; E_RATE, and when to come back, where there is none left."""
        if self.token.per_second == math.inf:
            return
        now = self._clock()
        self._left = min(self._most, self._left + self.token.per_second * (now - self._at))
        self._at = now
        if self._left < 1:
            wait = (1 - self._left) / self.token.per_second
            detail = f"this token may ask for {self.token.per_second:g} observations a second: ask less often"
            raise RefusedError(Code.RATE, detail, retry_after_s=math.ceil(1e3 * wait) / 1e3)
        self._left -= 1

    def connect(self) -> None:
        """A WebSocket opens; E_RATE for one too many. `disconnect` when it closes."""
        if self._open >= self.token.connections:
            detail = f"this token may hold {self.token.connections:g} connections at a time: close one"
            raise RefusedError(Code.RATE, detail, retry_after_s=BUSY_S)
        self._open += 1

    def disconnect(self) -> None:
        self._open -= 1


class Callers:
    """Every token's use. Without tokens everybody is the same, unlimited caller."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._callers = [Caller(token) for token in tokens]
        self._anybody = None if tokens else Caller(Token(""))

    def find(self, given: str) -> Caller | None:
        """Whose token that is. Every one is compared, each in constant time."""
        if self._anybody is not None:
            return self._anybody
        said, found = given.encode("utf-8", "replace"), None
        for caller in self._callers:
            if hmac.compare_digest(said, caller.token.secret.encode()):
                found = caller
        return found


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def parse(text: str) -> tuple[Token, ...]:
    """The lines of a token file; empty ones and those that begin with # say nothing. UsageError, without the token."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            limits = [float(word) for word in words[1:]]
        except ValueError:
            limits = [math.nan]
        if len(limits) > 2 or not all(limit > 0 for limit in limits):  # neither holds for NaN
            raise UsageError(f"line {number}: expected {FORM}, the last two as numbers above 0")
        found.append(Token(words[0], *limits))
    check(found)
    return tuple(found)


def check(tokens: Sequence[Token]) -> None:
    """UsageError for a token that could be guessed, or that stands twice."""
    for token in tokens:
        if len(token.secret) < SHORTEST:
            raise UsageError(
                f"a token has {len(token.secret)} characters, at least {SHORTEST} are needed: "
                "make one with openssl rand -hex 32"
            )
    if len({token.secret for token in tokens}) < len(tokens):
        raise UsageError("a token stands twice: one line each")
