"""A small drawing board for plots: shapes, scales, axes and a legend, as accessible inline SVG.

Colours are classes that the page's style sheet fills, so that one drawing serves light, dark and print. All text is
escaped here. Knows nothing of what is plotted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Final, Literal

from markupsafe import Markup

WIDTH: Final = 440
FONT: Final = 11.0
LETTER: Final = 0.56  # mean width of a letter, in font sizes
Anchor = Literal["start", "middle", "end"]


def paint(slot: int | None) -> str:
    """The class of a side's colour; a floor has none of its own."""
    return "sf" if slot is None else f"s{slot}"


def text_width(text: str, size: float = FONT) -> float:
    return len(text) * size * LETTER


def clipped(text: str, width: float, size: float = FONT) -> str:
    most = max(3, int(width / (size * LETTER)))
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True)
class Scale:
    """Data to drawing units, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the scale: 1, 2 and 5 times a power of ten."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if span / (power * k) <= most)
    return [round(step * i, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        found = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    return found or [low, high]


def tick_label(value: float) -> str:
    text = f"{value:.10g}"
    return "−" + text[1:] if text.startswith("-") else text


class Canvas:
    """Shapes collected into one `<svg>` with a title and a description for who cannot see it."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height = width, height
        self._title, self._description = title, description
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, tip: str = "", opacity: float = 1
    ) -> None:
        faint = f' fill-opacity="{opacity:.3g}"' if opacity < 1 else ""
        size = f'width="{max(0.0, width):.2f}" height="{max(0.0, height):.2f}"'
        self._shape(f'rect x="{x:.2f}" y="{y:.2f}" {size} class="{kind}"{faint}', tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._shape(f'line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{kind}"')

    def path(self, points: Sequence[tuple[float, float]], kind: str, tip: str = "") -> None:
        if points:
            self._shape(f'path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="{kind}"', tip)

    def circle(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        self._shape(f'circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" class="{kind}"', tip)

    def image(self, x: float, y: float, width: float, height: float, data: str) -> None:
        box = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
        self._shape(f'image {box} href="{escape(data)}" preserveAspectRatio="none"')

    def text(
        self, x: float, y: float, text: str, anchor: Anchor = "start", kind: str = "", turned: bool = False
    ) -> None:
        turn = f' transform="rotate(-90 {x:.2f} {y:.2f})"' if turned else ""
        named = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{named}{turn}>{escape(text, quote=False)}</text>'
        )

    def _shape(self, opening: str, tip: str = "") -> None:
        name = opening.partition(" ")[0]
        inner = f"><title>{escape(tip, quote=False)}</title></{name}>" if tip else "/>"
        self._parts.append(f"<{opening}{inner}")

    def markup(self) -> Markup:
        body = "\n".join(self._parts)
        name = "p" + hashlib.sha256((self._title + body).encode()).hexdigest()[:10]
        head = (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-labelledby="{name}t {name}d">'
            f'<title id="{name}t">{escape(self._title, quote=False)}</title>'
            f'<desc id="{name}d">{escape(self._description, quote=False)}</desc>'
        )
        return Markup(f"{head}\n{body}\n</svg>")


@dataclass(frozen=True)
class Frame:
    """The plotting area of a canvas."""

    left: float
    top: float
    right: float
    bottom: float


def x_axis(
    canvas: Canvas, frame: Frame, scale: Scale, label: str, most: int = 6, percent: bool = False, grid: bool = True
) -> None:
    canvas.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    for value in scale.ticks(most):
        x = scale(value)
        if grid:
            canvas.line(x, frame.top, x, frame.bottom, "grid")
        canvas.text(x, frame.bottom + 14, _tick(value, percent), "middle", "tick")
    canvas.text((frame.left + frame.right) / 2, frame.bottom + 29, label, "middle", "label")


def y_axis(canvas: Canvas, frame: Frame, scale: Scale, label: str, most: int = 5, percent: bool = False) -> None:
    for value in scale.ticks(most):
        y = scale(value)
        canvas.line(frame.left, y, frame.right, y, "grid")
        canvas.text(frame.left - 5, y + 3.8, _tick(value, percent), "end", "tick")
    canvas.text(11, (frame.top + frame.bottom) / 2, label, "middle", "label", turned=True)


def _tick(value: float, percent: bool) -> str:
    return f"{tick_label(100 * value)}%" if percent else tick_label(value)


def legend(entries: Sequence[tuple[str, int | None]], width: float) -> list[list[tuple[float, str, int | None]]]:
    """Rows of (x, name, slot), wrapped to the width."""
    rows: list[list[tuple[float, str, int | None]]] = [[]]
    x = 0.0
    for name, slot in entries:
        name = clipped(name, width - 16)
        step = text_width(name) + 26
        if rows[-1] and x + step - 12 > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name, slot))
        x += step
    return rows


def draw_legend(canvas: Canvas, entries: Sequence[tuple[str, int | None]], left: float, top: float) -> None:
    for row, content in enumerate(legend(entries, canvas.width - left)):
        y = top + 16 * row
        for x, name, slot in content:
            canvas.rect(left + x, y - 8, 10, 10, f"{paint(slot)} fill")
            canvas.text(left + x + 14, y + 1, name, kind="name")


def legend_height(entries: Sequence[tuple[str, int | None]], width: float) -> float:
    return 16.0 * len(legend(entries, width)) if entries else 0.0


def spread(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """The span of values, a little wider."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


def flat(rows: Sequence[Sequence[float | None]]) -> list[float]:
    return [value for value in chain.from_iterable(rows) if value is not None]
