"""Numbers in words: one way to write a share, an interval, a time or a size, for every report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from edge_vla.bench.result import Interval

EXCESS: Final = 0.05  # of a share, that the measurement of two quantities explains
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


def part(value: float | None) -> str:
    """A share of what is there: more than 105 % is withheld, for then one of the two was not measured as it ran."""
    if value is not None and value > 1 + EXCESS:
        return "withheld: above the whole, so one of the two was disturbed"
    return share(value)


def interval(value: Interval | None) -> str:
    """`86.1% [84.9, 87.3]`."""
    if value is None:
        return ABSENT
    low, high = (share(bound).removesuffix("%") for bound in (value.low, value.high))
    return f"{share(value.mean)} [{low}, {high}]"


def points(value: Interval | None) -> str:
    """A difference of shares in percentage points, signed: `+1.2 pp [−0.3, +2.7]`."""
    if value is None:
        return ABSENT
    return f"{signed(value.mean)} pp [{signed(value.low)}, {signed(value.high)}]"


def signed(share: float) -> str:
    """A difference of shares in percent, with its sign; zero has none."""
    rounded = round(100 * share, 1)
    return minus(f"{rounded:+.1f}") if rounded else "0.0"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant figures, without an exponent where possible."""
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


def plain_interval(value: Interval) -> str:
    return f"{number(value.mean, 2)} [{number(value.low, 2)}, {number(value.high, 2)}]"


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


def operations(value: float | None) -> str:
    return ABSENT if value is None else f"{number(value / 1e9)} G"


def of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def value_of(value: object) -> str:
    """Any value: an entry of a recipe, a declared bound, the state of a device."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        value = {key: entry for key, entry in value.items() if value_of(entry) != ABSENT}
        nested = any(isinstance(entry, Mapping) for entry in value.values())
        names = [str(key).replace("_", " ") + (": " if nested else " ") for key in value]
        separator = "; " if nested else ", "
        return separator.join(n + value_of(v) for n, v in zip(names, value.values(), strict=True)) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_of, value)) or ABSENT
    return str(value)
