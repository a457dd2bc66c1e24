"""Numbers as words: one way to write a share, an interval, a time or a size, for every renderer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ABSENT: Final = "–"


def share(value: float | None, digits: int = 1) -> str:
    """A percentage. Only an exact 0 or 1 is written as 0% or 100%."""
    if value is None:
        return ABSENT
    text, step = f"{value:.{digits}%}", 10**-digits
    if 0 < value < 1 and text == f"{1:.{digits}%}":
        return f">{100 - step:.{digits}f}%"
    if 0 < value < 1 and text == f"{0:.{digits}%}":
        return f"<{step:.{digits}f}%"
    return text


def interval(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """`86.1% [84.9, 87.3]`."""
    if value is None:
        return ABSENT
    low, high = (share(value[bound], digits).removesuffix("%") for bound in ("low", "high"))
    return f"{share(value['mean'], digits)} [{low}, {high}]"


def points(value: Mapping[str, Any] | None) -> str:
    """A difference of shares in percentage points, signed."""
    if value is None:
        return ABSENT
    return f"{_signed(value['mean'])} pp [{_signed(value['low'])}, {_signed(value['high'])}]"


def _signed(share: float) -> str:
    """A true minus sign, and none before a zero."""
    rounded = round(100 * share, 1)
    return minus(f"{rounded:+.1f}") if rounded else "0.0"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant ones, without an exponent where one can do without."""
    if value is None:
        return ABSENT
    if value == 0 or (float(value).is_integer() and abs(value) < 1e6):
        return minus(f"{value:.0f}")
    text = f"{value:.{digits}g}"
    text = f"{float(text):,.0f}" if "e+" in text and abs(value) < 1e12 else text
    return minus(text)


def minus(text: str) -> str:
    """A true minus sign in front; an exponent keeps its own."""
    return "−" + text[1:] if text.startswith("-") else text


def plain_interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ABSENT
    return f"{number(value['mean'], 2)} [{number(value['low'], 2)}, {number(value['high'], 2)}]"


def milliseconds(value: float | None) -> str:
    if value is None:
        return ABSENT
    if value >= 10_000:
        return f"{value / 1e3:.1f} s"
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def hertz(value: float | None) -> str:
    return ABSENT if value is None else f"{value:#.3g}".rstrip(".") + " Hz"


def size(value: float | None) -> str:
    """MiB below one GiB, GiB above."""
    if value is None:
        return ABSENT
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def value_of(value: object) -> str:
    """A gate's value or bound, a recipe's entry: whatever stands in the JSON."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, Mapping) and any(isinstance(entry, Mapping) for entry in value.values()):
        return "; ".join(f"{key}: {value_of(entry)}" for key, entry in value.items())
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {value_of(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(value_of(entry) for entry in value) or ABSENT
    return str(value)


def recipe(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value_of(value)}" for key, value in values.items() if value is not None)
