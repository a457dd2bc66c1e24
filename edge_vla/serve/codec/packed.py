"""msgpack with every size bounded, under the three forms that robots send arrays in. Knows maps, not what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import msgpack

from edge_vla.serve.codec.values import CONTAINERS, ITEMS, Value, check_body, check_structure, malformed, too_large
from edge_vla.serve.limits import Limits

Raw: TypeAlias = dict[object, Value]  # keys are text or bytes, whatever the sender chose


def unpack(body: bytes, limits: Limits, on_map: Callable[[Raw], Value]) -> Value:
    """`body`, each map passed through `on_map`, the deepest first. Raises RefusedError, and only that."""
    check_body(body, limits)
    containers = 0

    def count() -> None:
        nonlocal containers
        containers += 1
        if containers > CONTAINERS:
            raise too_large(f"over {CONTAINERS} maps and lists", f"at most {CONTAINERS}")

    def pairs(items: list[tuple[object, Value]]) -> Value:
        count()
        found: Raw = dict(items)
        if len(found) != len(items):
            raise malformed("a key twice in one map", "each once")
        return on_map(found)

    def items(values: list[Value]) -> list[Value]:
        count()
        return values

    try:
        found = msgpack.unpackb(
            body,
            object_pairs_hook=pairs,
            list_hook=items,
            max_str_len=limits.body,
            max_bin_len=limits.body,
            max_array_len=ITEMS,
            max_map_len=limits.keys,
            max_ext_len=0,  # no extension types, dates among them
        )
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException):
        raise malformed(
            f"{len(body)} bytes that are no msgpack", f"one msgpack value, maps to {limits.keys} keys, no extensions"
        ) from None
    return check_structure(cast(Value, found), limits)


def text_keys(found: Raw) -> Value:
    """A plain map. Its keys must be text."""
    if not all(isinstance(key, str) for key in found):
        raise malformed("a map with keys that are no text", "text keys")
    return cast("dict[str, Value]", found)
