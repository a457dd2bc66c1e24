"""A small drawing board: shapes, a scale, an axis and a legend, as accessible inline SVG.

Colours are classes of the page's style sheet, so that one drawing serves light, dark and print. All text is escaped
here. Knows nothing of what is drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from markupsafe import Markup

WIDTH: Final = 440
FONT: Final = 11.0
LETTER: Final = 0.56  # mean width of a letter, in font sizes
Anchor = Literal["start", "middle", "end"]
COLOURS: Final = 12  # of the page's style sheet
Colour = int | None  # 0 is the reference's; None a floor's grey


def paint(colour: Colour) -> str:
    return "sf" if colour is None else f"s{colour}"


def text_width(text: str, size: float = FONT) -> float:
    return len(text) * size * LETTER


def clipped(text: str, width: float) -> str:
    most = max(3, int(width / (FONT * LETTER)))
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


class Canvas:
    """Shapes collected into one `<svg>`."""

    def __init__(self, height: float) -> None:
        self.height = height
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, tip: str = "", opacity: float = 1
    ) -> None:
        faint = f' fill-opacity="{opacity:.3g}"' if opacity < 1 else ""
        size = f'width="{max(0.0, width):.2f}" height="{height:.2f}"'
        self._shape("rect", f'x="{x:.2f}" y="{y:.2f}" {size} class="{kind}"{faint}', tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._shape("line", f'x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{kind}"')

    def circle(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        self._shape("circle", f'cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" class="{kind}"', tip)

    def text(self, x: float, y: float, text: str, anchor: Anchor = "start", kind: str = "name") -> None:
        place = f'x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" class="{kind}"'
        self._parts.append(f"<text {place}>{escape(text, quote=False)}</text>")

    def _shape(self, name: str, attributes: str, tip: str = "") -> None:
        end = f"><title>{escape(tip, quote=False)}</title></{name}>" if tip else "/>"
        self._parts.append(f"<{name} {attributes}{end}")

    def x_axis(self, scale: Scale, top: float, bottom: float, label: str) -> None:
        """Grid lines from `top` to `bottom`, their values and the label below."""
        self.line(scale.start, bottom, scale.end, bottom, "axis")
        for value in scale.ticks():
            self.line(scale(value), top, scale(value), bottom, "grid")
            self.text(scale(value), bottom + 14, f"{value:.10g}".replace("-", "−"), "middle", "tick")
        self.text((scale.start + scale.end) / 2, bottom + 29, label, "middle", "label")

    def legend(self, entries: Sequence[tuple[str, Colour]]) -> float:
        """Names with their colours, wrapped; returns where the drawing may begin."""
        x, y = 0.0, 10.0
        for full, colour in entries:
            name = clipped(full, WIDTH - 16)
            if x and x + text_width(name) + 14 > WIDTH:
                x, y = 0.0, y + 16
            self.rect(x, y - 8, 10, 10, f"{paint(colour)} fill")
            self.text(x + 14, y + 1, name)
            x += text_width(name) + 26
        self.height += y + 10
        return y + 10

    def markup(self, title: str, description: str) -> Markup:
        """The title and the description are for screen readers."""
        body = "\n".join(self._parts)
        name = "p" + hashlib.sha256((title + body).encode()).hexdigest()[:10]
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-labelledby="{name}t {name}d">'
            f'<title id="{name}t">{escape(title, quote=False)}</title>'
            f'<desc id="{name}d">{escape(description, quote=False)}</desc>\n{body}\n</svg>'
        )
