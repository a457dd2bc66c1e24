"""Three kinds of charts. Each takes plain numbers and names and returns a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_vla.bench.reports.svg import COLOURS, WIDTH, Canvas, Colour, Scale, clipped, paint, text_width


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
class Line:
    """An upright line at a value of the axis, dashed; without a label it marks the origin."""

    x: float
    label: str = ""


@dataclass(frozen=True)
class Cell:
    """`depth` in 0..1 is the colour's strength; None leaves the cell empty."""

    text: str
    depth: float | None
    tip: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Segment:
    name: str
    length: float
    tip: str


def _left(names: Sequence[str], most: float = 130) -> float:
    """Width that the names of rows need."""
    return min(most, max(map(text_width, names), default=0)) + 14


def intervals(
    groups: Mapping[str, Sequence[Range]],
    x_label: str,
    *,
    lines: Sequence[Line] = (),
    log: bool = False,
) -> Canvas:
    """A dot and its interval a row, in named groups; the legend gives each name its colour."""
    rows = [row for group in groups.values() for row in group]
    tall, gap, left = 10.0, 12.0, _left(list(groups))
    height = tall * len(rows) + gap * len(groups)
    labels = 14.0 if any(line.label for line in lines) else 0.0
    canvas = Canvas(height + labels + 36)
    top = labels + canvas.legend(list(dict.fromkeys((row.name, row.colour) for row in rows)))
    values = [value for row in rows for value in (row.low, row.value, row.high)] + [line.x for line in lines]
    low, high = min(values), max(values)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = (low / 1.1, high * 1.1) if log else (low - pad, high + pad)
    scale = Scale(low, high, left, WIDTH - 12, log)
    canvas.x_axis(scale, top, top + height, x_label)
    for line in lines:
        canvas.line(scale(line.x), top, scale(line.x), top + height, "mark" if line.label else "axis")
        right = scale(line.x) > WIDTH / 2
        canvas.text(scale(line.x), top - 3, line.label, "end" if right else "start", "tick")
    y = top + gap / 2
    for name, group in groups.items():
        canvas.text(left - 6, y + tall * len(group) / 2 + 4, clipped(name, left - 8), "end")
        for row in group:
            y += tall
            kind = paint(row.colour)
            canvas.line(scale(row.low), y - tall / 2, scale(row.high), y - tall / 2, f"{kind} thick")
            canvas.circle(scale(row.value), y - tall / 2, 3, f"{kind} fill", f"{row.name}, {name}: {row.tip}")
        y += gap
    return canvas


def stacked(rows: Mapping[str, Sequence[Segment]], x_label: str) -> Canvas:
    """A bar a row, made of segments; the legend gives each segment's name its colour."""
    names = list(dict.fromkeys(segment.name for row in rows.values() for segment in row))
    colours = {name: 1 + i % (COLOURS - 1) for i, name in enumerate(names)}
    tall, left = 22.0, _left(list(rows))
    canvas = Canvas(tall * len(rows) + 36)
    top = canvas.legend(list(colours.items()))
    longest = max(sum(segment.length for segment in row) for row in rows.values())
    scale = Scale(0, longest or 1, left, WIDTH - 12)
    canvas.x_axis(scale, top, top + tall * len(rows), x_label)
    for i, (name, row) in enumerate(rows.items()):
        y, at = top + tall * i, 0.0
        canvas.text(left - 6, y + 15, clipped(name, left - 8), "end")
        for segment in row:
            width = scale(at + segment.length) - scale(at)
            kind = f"{paint(colours[segment.name])} fill"
            canvas.rect(scale(at), y + 4, width, 14, kind, f"{name}, {segment.name}: {segment.tip}")
            at += segment.length
    return canvas


def heat(columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> Canvas:
    """A map of cells with their values written in."""
    tall, left, top = 20.0, _left(list(rows), 140), 30.0
    canvas = Canvas(top + tall * len(rows) + 4)
    width = (WIDTH - left - 2) / max(1, len(columns))
    for i, column in enumerate(columns):
        parts = column.split(" ", 1)  # one above the other
        for line, part in enumerate(reversed(parts)):
            canvas.text(left + width * (i + 0.5), top - 6 - 11 * line, clipped(part, width), "middle", "tick")
    for j, (name, cells) in enumerate(rows.items()):
        y = top + tall * j
        canvas.text(left - 6, y + 14, clipped(name, left - 8), "end")
        for i, cell in enumerate(cells):
            x = left + width * i
            kind, opacity = ("none", 1.0) if cell.depth is None else ("heat", 0.04 + 0.5 * cell.depth)
            canvas.rect(x + 0.5, y + 0.5, width - 1, tall - 1, kind, cell.tip, opacity)
            if text_width(cell.text, 10) <= width:
                canvas.text(x + width / 2, y + 13.6, cell.text, "middle", "cell strong" if cell.strong else "cell")
    return canvas
