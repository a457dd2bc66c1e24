"""JSON to frozen dataclasses, checked against their annotations; `dataclasses.asdict` is the way back.

Knows dataclasses (generic ones too), tuples, lists, dicts, enums, literals, optionals and plain values. Knows no file
and no version.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], raw: object, where: str = "", *, ignore_unknown: bool = False) -> T:
    """`raw`, as `json.loads` returns it, as a `kind`; `where` is what messages call it.

    ValueError names the place of an unknown key, a missing key or a value of another type.
    """
    value: T = _convert(kind, raw, where or kind.__name__, ignore_unknown)
    return value


def parse(text: str | bytes) -> object:
    """JSON as plain values; ValueError also for a key that stands twice in an object, NaN and Infinity."""
    try:
        parsed: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return parsed


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
        raise ValueError(f"the key {twice[0]!r} stands more than once in an object")
    return dict(pairs)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _convert(kind: Any, raw: Any, where: str, ignore_unknown: bool) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) or dataclasses.is_dataclass(origin):
        return _dataclass(kind, raw, where, ignore_unknown)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        kind = next((option for option in options if type(raw) is (get_origin(option) or option)), options[0])
        return _convert(kind, raw, where, ignore_unknown)
    if origin in (tuple, list) and isinstance(raw, list):
        kinds = arguments[:1] * len(raw) if origin is list or arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(raw):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {len(raw)}")
        return origin(
            _convert(one, part, f"{where}[{i}]", ignore_unknown)
            for i, (one, part) in enumerate(zip(kinds, raw, strict=True))
        )
    if origin in (dict, Mapping) and isinstance(raw, dict):
        return {key: _convert(arguments[1], part, f"{where}.{key}", ignore_unknown) for key, part in raw.items()}
    if origin is Literal:
        if raw not in arguments:
            raise ValueError(f"{where}: expected one of {list(arguments)}, got {raw!r:.80}")
        return raw
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(raw)
    if kind is float and type(raw) is int:
        return float(raw)
    if kind in (Any, object) or type(raw) is kind:
        return raw
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {raw!r:.80}")


def _fields(kind: Any) -> dict[str, Any]:
    """Types by field; those of `Part[int]` are Part's with int in place of its type variable."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    kinds = get_type_hints(origin)
    if not arguments:
        return kinds
    given = dict(zip(origin.__parameters__, arguments, strict=True))
    for name, one in kinds.items():
        free = getattr(one, "__parameters__", ())
        kinds[name] = given.get(one) or (one[tuple(given[variable] for variable in free)] if free else one)
    return kinds


def _dataclass(kind: Any, raw: Any, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected an object, got {raw!r:.80}")
    kinds = _fields(kind)
    unknown = sorted(set(raw) - set(kinds))
    if unknown and not ignore_unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}, expected {sorted(kinds)}")
    known = {name: value for name, value in raw.items() if name in kinds}
    try:
        return kind(
            **{name: _convert(kinds[name], value, f"{where}.{name}", ignore_unknown) for name, value in known.items()}
        )
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
