"""Calls from Python: arguments of another type than a function declares are a UsageError in a line, not a traceback.

`@typed()` reads the annotations, once: a call pays for binding and a test of each argument, microseconds where an
action takes milliseconds. What a value must be within its type, the function itself says.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from edge_vla.errors import UsageError

Given = ParamSpec("Given")
Result = TypeVar("Result")
Check = Callable[[object], bool]


def typed(*elsewhere: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Makes a function raise UsageError for missing, unknown and wrongly typed arguments.

    `elsewhere` are parameters that the function looks at itself, and says more of.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature, call = inspect.signature(function), f"{function.__name__}{_shown(inspect.signature(function))}"

        @cache
        def checks() -> Mapping[str, tuple[Check, object]]:
            hints = get_type_hints(function)
            return {name: (check_of(hint), hint) for name, hint in hints.items() if name not in elsewhere}

        @wraps(function)
        def typed_call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise UsageError(f"{call}: {error}") from None
            for parameter, (fits, annotation) in checks().items():
                if parameter in given and not fits(given[parameter]):
                    got = _got(given[parameter])
                    raise UsageError(f"{call}: {parameter} must be {in_words(annotation)}, got {got}")
            return function(*args, **kwargs)

        return typed_call

    return decorate


def check_of(annotation: Any) -> Check:
    """Whether a value is of an annotated type; the members of a sequence too. Literals are strings here."""
    origin, args = get_origin(annotation), get_args(annotation)
    kind = origin or annotation
    if annotation is Any or isinstance(annotation, TypeVar):
        return lambda _: True
    if origin in (Union, types.UnionType):
        each = [check_of(one) for one in args]
        return lambda value: any(fits(value) for fits in each)
    if origin is Literal:
        return lambda value: isinstance(value, str)
    if origin is Callable:
        return callable
    if kind is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    if kind in (Sequence, Iterable, list, tuple):
        return partial(_holds, kind, check_of(args[0] if args else Any))
    return lambda value: isinstance(value, kind)


def _holds(kind: type, fits: Check, value: object) -> bool:
    """Whether it is a sequence of that kind; where it may be looked at twice, with members that fit."""
    if isinstance(value, str | bytes) or not isinstance(value, kind) or not _iterates(value):
        return False
    return not isinstance(value, Sequence) or all(map(fits, value))


def _iterates(value: object) -> bool:
    """Whether it really does: an array of no dimensions says so and raises."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def in_words(annotation: Any) -> str:
    """`str | Path | None` -> "str, Path or None"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [in_words(one) for one in args]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Sequence, Iterable, list, tuple) and args:
        return f"a list of {in_words(args[0])}"
    if annotation is type(None):
        return "None"
    return str(getattr(origin or annotation, "__name__", annotation))


def _got(value: object) -> str:
    """The type, and of a short plain value the value; of an array its shape."""
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is not None:
        return f"{kind} of shape {tuple(shape)}"
    return f"{kind} {value!r:.40}" if isinstance(value, str | int | float | bytes | list | tuple) else kind


def _shown(signature: inspect.Signature) -> str:
    """What a call needs: `(image, instruction, …)`."""
    parameters = [one for name, one in signature.parameters.items() if name != "self"]
    needed = [one.name for one in parameters if one.default is inspect.Parameter.empty]
    return f"({', '.join(needed + ['…'] * (len(needed) < len(parameters)))})"
