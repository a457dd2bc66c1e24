"""What a decoded message may hold, and how much of it. Every cap is checked before the memory it saves is taken."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError

Value: TypeAlias = "bool | int | float | str | bytes | NDArray[Any] | list[Value] | dict[str, Value] | None"


DIMS: Final = 6  # of an array
LENGTH: Final = 1 << 24  # of one dimension of an array
ITEMS: Final = 1024  # of one list
CONTAINERS: Final = 2048  # maps and lists of one message


def malformed(got: str, expected: str) -> RefusedError:
    return RefusedError(Code.MALFORMED, f"got {got}, expected {expected}")


def too_large(got: str, expected: str) -> RefusedError:
    return RefusedError(Code.TOO_LARGE, f"got {got}, expected {expected}")


def kind(value: object) -> str:
    """A value's type in a client's words; never its content."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} {value.dtype}"
    names = {dict: "a map", list: "a list", str: "a text", bytes: "bytes", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "something else")


def check_body(body: bytes, limits: Limits) -> None:
    if len(body) > limits.body:
        raise too_large(f"a message of {len(body)} bytes", f"at most {limits.body}")


def check_structure(value: Value, limits: Limits) -> Value:
    """`value`, if it is neither too deep nor holds too many images."""
    images, level, depth = 0, [value], 0
    while level:
        depth += 1
        if depth > limits.depth + 1:
            raise too_large(f"more than {limits.depth} levels", f"at most {limits.depth}")
        below: list[Value] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, np.ndarray) and item.ndim >= 3:
                images += 1
        level = below
    if images > limits.images:
        raise too_large(f"{images} images", f"at most {limits.images}")
    return value
