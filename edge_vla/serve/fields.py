"""What front ends read out of decoded messages: texts, numbers, one of several fields. Knows no protocol's names."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from edge_vla.serve.codec.values import Value, kind, malformed
from edge_vla.serve.messages import Code, RefusedError

T = TypeVar("T")
INLINE: Final = (
    1 << 20
)  # bytes that are decoded on the event loop: a 512 x 512 image and less, well under a millisecond
SHOWN: Final = 12  # names of fields in an error


def text(value: Value, name: str) -> str | None:
    """A text or nothing."""
    if value is None or isinstance(value, str):
        return value
    raise malformed(f"{kind(value)} as '{name}'", "a text")


def number(value: Value, name: str) -> float | None:
    """A number or nothing. Whether it makes sense is the server's question."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed(f"{kind(value)} as '{name}'", "a number")
    try:
        return float(value)
    except OverflowError:
        raise malformed(f"a whole number beyond floats as '{name}'", "a number") from None


def identifier(value: Value, name: str) -> int | str | None:
    if value is None or isinstance(value, str) or type(value) is int:
        return value
    raise malformed(f"{kind(value)} as '{name}'", "a text or a whole number")


def instruction(value: Value, name: str) -> str:
    """A text, or one text in a list, as batches of one come."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise RefusedError(Code.INSTRUCTION, f"{name}: got {kind(value)}, expected a text")
    return value


def at(message: dict[str, Value], path: str) -> Value:
    """The field of that name, or the one that its parts lead to: `images/cam_high`. None if there is none."""
    if path in message:
        return message[path]
    found: Value = message
    for part in path.split("/"):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def first(message: dict[str, Value], paths: Iterable[str]) -> str | None:
    return next((path for path in paths if at(message, path) is not None), None)


def missing(what: str, message: Iterable[str], expected: Sequence[str]) -> RefusedError:
    """No field says `what`: which fields there are, and which were looked for."""
    names = sorted(str(name)[:40] for name in message)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    got = f"the fields {', '.join(map(ascii, names[:SHOWN]))}{more}" if names else "no fields"
    return malformed(f"{got}, none of them {what}", f"one of {', '.join(expected)}")


def fields(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise malformed(kind(value), "a map")
    return value


def unique(protocol: str) -> str:
    """A robot's name for a connection that gives none."""
    return f"{protocol}-{secrets.token_hex(6)}"


async def off_loop(size: int, decode: Callable[[], T]) -> T:
    """`decode()`, on a thread where it would hold up other robots."""
    return decode() if size <= INLINE else await asyncio.to_thread(decode)
