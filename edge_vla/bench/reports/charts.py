"""Two kinds of charts as numbers and names. The page's template draws them; positions are percentages of the width.

Colours are numbers of the page's palette, so that one drawing serves light, dark and print. Nothing here is markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

COLOURS: Final = 12  # of the page's style sheet
Colour = int | None  # 0 is the reference's; None a floor's grey


@dataclass(frozen=True)
class Range:
    """A value with its interval."""

    name: str
    colour: Colour
    value: float
    low: float
    high: float
    tip: str


@dataclass(frozen=True)
class Segment:
    name: str
    length: float
    tip: str


@dataclass(frozen=True)
class Scale:
    """Data to percent, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = (at - low) / (high - low) if high > low else 0.5
        return 100 * min(1.0, max(0.0, share))

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale: 1, 2 and 5 times a power of ten."""
        if not self.high > self.low:
            return [self.low]
        if not self.log:
            power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
            step = next(power * k for k in (1, 2, 5, 10, 20) if (self.high - self.low) / (power * k) <= most)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [round(step * i, 12) for i in range(first, last + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        found = [value for value in values if self.low <= value <= self.high]
        return found[:: 1 + len(found) // (most + 2)] or [self.low, self.high]


@dataclass(frozen=True)
class Intervals:
    """A dot and its interval a row, in named groups. `lines` stand upright at a value, dashed if they have a name."""

    x_label: str
    rows: Mapping[str, Sequence[Range]]
    lines: Mapping[float, str] = field(default_factory=dict)
    log: bool = False
    kind: str = "intervals"

    @cached_property
    def scale(self) -> Scale:
        ends = [end for group in self.rows.values() for row in group for end in (row.low, row.value, row.high)]
        low, high = min([*ends, *self.lines]), max([*ends, *self.lines])
        pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return Scale(low / 1.1, high * 1.1, log=True) if self.log else Scale(low - pad, high + pad)

    @property
    def legend(self) -> dict[str, Colour]:
        return {row.name: row.colour for group in self.rows.values() for row in group}


@dataclass(frozen=True)
class Stacked:
    """A bar a row, made of segments."""

    x_label: str
    rows: Mapping[str, Sequence[Segment]]
    kind: str = "stacked"

    @cached_property
    def scale(self) -> Scale:
        return Scale(0, max(sum(segment.length for segment in row) for row in self.rows.values()) or 1)

    @property
    def legend(self) -> dict[str, Colour]:
        names = dict.fromkeys(segment.name for row in self.rows.values() for segment in row)
        return {name: 1 + i % (COLOURS - 1) for i, name in enumerate(names)}
