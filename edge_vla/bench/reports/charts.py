"""Kinds of plots, drawn on `svg`. Each takes plain numbers and names and returns one inline `<svg>`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edge_vla.bench.reports.svg import (
    WIDTH,
    Canvas,
    Frame,
    Scale,
    clipped,
    draw_legend,
    flat,
    legend_height,
    paint,
    spread,
    text_width,
    x_axis,
    y_axis,
)


@dataclass(frozen=True)
class Series:
    """Values by position; None where there is none."""

    name: str
    slot: int | None
    values: Sequence[float | None]


@dataclass(frozen=True)
class Curve:
    name: str
    slot: int | None
    points: Sequence[tuple[float, float]]
    stepped: bool = True  # of every sample; else only these points are known


@dataclass(frozen=True)
class Cell:
    """`depth` in 0..1 is the colour's strength; `mark` stands behind the text."""

    text: str
    depth: float | None
    tip: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Point:
    name: str
    slot: int | None
    x: float
    y: float
    low: float
    high: float
    radius: float
    note: str
    best: bool  # no other point is better in both


@dataclass(frozen=True)
class Range:
    """A value with its interval, on a row of its own."""

    name: str
    slot: int | None
    mean: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A stretch of a waterfall, from `start` on."""

    name: str
    slot: int | None
    start: float
    length: float
    text: str
    head: bool = False  # opens a side: its name and whole length
    faint: bool = False


def _left(names: Sequence[str], most: float = 130) -> float:
    return min(most, max((text_width(name) for name in names), default=0)) + 10


def bars(
    title: str, description: str, groups: Sequence[str], series: Sequence[Series], x_label: str, y_label: str
) -> Markup:
    """Grouped upright bars, as shares."""
    entries = [(one.name, one.slot) for one in series]
    top = legend_height(entries, WIDTH - 44) + 12
    canvas = Canvas(WIDTH, top + 170 + 36, title, description)
    frame = Frame(44, top, WIDTH - 4, top + 170)
    draw_legend(canvas, entries, frame.left, 10)
    highest = max(flat([one.values for one in series]), default=0) or 0.01
    scale = Scale(0, highest * 1.05, frame.bottom, frame.top)
    y_axis(canvas, frame, scale, y_label, percent=True)
    room = (frame.right - frame.left) / max(1, len(groups))
    width = min(14.0, room * 0.78 / max(1, len(series)))
    for i, group in enumerate(groups):
        middle = frame.left + room * (i + 0.5)
        x = middle - width * len(series) / 2
        for one in series:
            value = one.values[i]
            if value is not None:
                tip = f"{one.name}, {group}: {value:.2%}"
                canvas.rect(
                    x + 0.5, scale(value), width - 1, frame.bottom - scale(value), f"{paint(one.slot)} fill", tip
                )
            x += width
        canvas.text(middle, frame.bottom + 14, group, "middle", "tick")
    canvas.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    canvas.text((frame.left + frame.right) / 2, frame.bottom + 29, x_label, "middle", "label")
    return canvas.markup()


def lines(
    title: str,
    description: str,
    groups: Sequence[str],
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """A line a series through its points; `mark` is an upright line at a position between groups."""
    entries = [(one.name, one.slot) for one in series]
    top = legend_height(entries, WIDTH - 44) + (24 if mark else 12)
    canvas = Canvas(WIDTH, top + 180 + 36, title, description)
    frame = Frame(44, top, WIDTH - 8, top + 180)
    draw_legend(canvas, entries, frame.left, 10)
    scale = Scale(0, (max(flat([one.values for one in series]), default=0) or 0.01) * 1.05, frame.bottom, frame.top)
    y_axis(canvas, frame, scale, y_label, percent=True)
    room = (frame.right - frame.left) / max(1, len(groups))
    for i, group in enumerate(groups):
        canvas.text(frame.left + room * (i + 0.5), frame.bottom + 14, group, "middle", "tick")
    if mark:
        x = frame.left + room * min(max(mark[0], 0), len(groups))
        canvas.line(x, frame.top - 4, x, frame.bottom, "mark")
        side = x > (frame.left + frame.right) / 2
        canvas.text(x - 4 if side else x + 4, frame.top - 4, mark[1], "end" if side else "start", "tick")
    for one in series:
        points = [(frame.left + room * (i + 0.5), scale(v)) for i, v in enumerate(one.values) if v is not None]
        canvas.path(points, f"{paint(one.slot)} stroke")
        shown = [(i, v) for i, v in enumerate(one.values) if v is not None]
        for (x, y), (i, value) in zip(points, shown, strict=True):
            canvas.circle(x, y, 2.6, f"{paint(one.slot)} fill", f"{one.name}, {groups[i]}: {value:.2%}")
    canvas.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    canvas.text((frame.left + frame.right) / 2, frame.bottom + 29, x_label, "middle", "label")
    return canvas.markup()


def steps(
    title: str,
    description: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Cumulative shares over a logarithmic axis."""
    entries = [(one.name, one.slot) for one in curves]
    top = legend_height(entries, WIDTH - 44) + (24 if mark else 12)
    canvas = Canvas(WIDTH, top + 190 + 36, title, description)
    frame = Frame(44, top, WIDTH - 12, top + 190)
    draw_legend(canvas, entries, frame.left, 10)
    xs = [x for one in curves for x, _ in one.points] + ([mark[0]] if mark else [])
    across = Scale(min(xs) / 1.06, max(xs) * 1.06, frame.left, frame.right, log=True)
    up = Scale(0, 1, frame.bottom, frame.top)
    y_axis(canvas, frame, up, y_label, percent=True)
    x_axis(canvas, frame, across, x_label)
    if mark:
        x = across(mark[0])
        canvas.line(x, frame.top - 4, x, frame.bottom, "mark")
        canvas.text(min(x + 2, frame.right), frame.top - 6, mark[1], "end", "tick")
    for one in curves:
        corners: list[tuple[float, float]] = []
        for x, share in one.points:
            if one.stepped:
                corners.append((across(x), corners[-1][1] if corners else up(0)))
            corners.append((across(x), up(share)))
            if not one.stepped:
                canvas.circle(
                    across(x), up(share), 2.4, f"{paint(one.slot)} fill", f"{one.name}: {share:.1%} in {x:.4g}"
                )
        canvas.path(corners, f"{paint(one.slot)} stroke", one.name)
    return canvas.markup()


def waterfall(title: str, description: str, rows: Sequence[Bar], x_label: str) -> Markup:
    """Bars that begin where the one above ended, grouped by side."""
    left = _left([row.name for row in rows])
    heights = [20.0 if row.head else 14.0 for row in rows]
    canvas = Canvas(WIDTH, sum(heights) + 46, title, description)
    frame = Frame(left, 4, WIDTH - 10, sum(heights) + 8)
    longest = max(row.start + row.length for row in rows)
    tail = max(text_width(row.text, 10) for row in rows) + 8
    scale = Scale(0, longest or 1, frame.left, frame.right - tail)
    x_axis(canvas, frame, scale, x_label)
    y = frame.top
    for row, height in zip(rows, heights, strict=True):
        base = y + height - 3
        kind = f"{paint(row.slot)} fill"
        canvas.text(left - 6, base - 1, clipped(row.name, left - 8), "end", "strong" if row.head else "tick")
        x, width = scale(row.start), scale(row.start + row.length) - scale(row.start)
        if row.head:
            canvas.rect(x, base - 4, width, 2, kind, f"{row.name}: {row.text}")
        else:
            canvas.rect(x, base - 9, max(width, 0.8), 9, kind, f"{row.name}: {row.text}", 0.35 if row.faint else 0.8)
        canvas.text(x + width + 4, base - 1, row.text, kind="strong small" if row.head else "tick")
        y += height
    return canvas.markup()


def heat(
    title: str,
    description: str,
    rows: Sequence[tuple[str, bool]],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
) -> Markup:
    """A map of cells with their values written in. A row is (name, whether a rule follows it)."""
    left = _left([name for name, _ in rows], 140)
    tall = 20.0
    slanted = max(map(text_width, columns), default=0) > (WIDTH - left) / max(1, len(columns)) + 8
    top = 18.0 if not slanted else min(100.0, max(map(text_width, columns)) + 10)
    canvas = Canvas(WIDTH, top + tall * len(rows) + 4 + 5 * sum(rule for _, rule in rows), title, description)
    width = (WIDTH - left - 2) / max(1, len(columns))
    for i, column in enumerate(columns):
        middle = left + width * (i + 0.5)
        if slanted:
            canvas.text(middle + 4, top - 5, clipped(column, top - 8), "start", "tick", turned=True)
        else:
            canvas.text(middle, top - 6, column, "middle", "tick")
    y = top
    for (name, rule), line in zip(rows, cells, strict=True):
        canvas.text(left - 6, y + 14, clipped(name, left - 8), "end", "name")
        for i, cell in enumerate(line):
            x = left + width * i
            if cell.depth is None:
                canvas.rect(x + 0.5, y + 0.5, width - 1, tall - 1, "none")
                continue
            canvas.rect(x + 0.5, y + 0.5, width - 1, tall - 1, "heat", cell.tip, 0.04 + 0.5 * cell.depth)
            if text_width(cell.text, 10) <= width:
                canvas.text(x + width / 2, y + 13.6, cell.text, "middle", "cell strong" if cell.strong else "cell")
        y += tall
        if rule:
            canvas.line(0, y + 2.5, WIDTH, y + 2.5, "rule")
            y += 5
    return canvas.markup()


def scatter(
    title: str,
    description: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    bands: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """Points with upright intervals, over a logarithmic axis; `bands` are (low, high, name) across."""
    canvas = Canvas(WIDTH, 300, title, description)
    frame = Frame(44, 12, WIDTH - 10, 262)
    xs = [point.x for point in points]
    across = Scale(min(xs) / 1.35, max(xs) * 1.6, frame.left, frame.right, log=True)
    low = min([point.low for point in points] + [band[0] for band in bands])
    up = Scale(max(0.0, low - 0.06), 1.03, frame.bottom, frame.top)
    y_axis(canvas, frame, up, y_label, percent=True)
    x_axis(canvas, frame, across, x_label)
    taken: list[tuple[float, float, float, float]] = []
    for bottom, top, name in bands:
        canvas.rect(frame.left, up(top), frame.right - frame.left, max(1.5, up(bottom) - up(top)), "band", name)
        middle = (up(top) + up(bottom)) / 2
        canvas.text(frame.right - 4, middle + 3.5, name, "end", "tick")
        taken.append((frame.right - 4 - text_width(name, 10), middle - 7, frame.right, middle + 7))
    for point in points:
        x, y = across(point.x), up(point.y)
        canvas.line(x, up(point.low), x, up(point.high), f"{paint(point.slot)} thin")
        kind = f"{paint(point.slot)} {'fill' if point.best else 'hollow'}"
        canvas.circle(x, y, point.radius, kind, f"{point.name}: {point.note}")
        taken.append((x - point.radius, y - point.radius, x + point.radius, y + point.radius))
    for point in sorted(points, key=lambda point: -point.y):
        _label(canvas, frame, point, across(point.x), up(point.y), taken)
    return canvas.markup()


def _label(
    canvas: Canvas, frame: Frame, point: Point, x: float, y: float, taken: list[tuple[float, float, float, float]]
) -> None:
    """The point's name where it covers nothing: right, left, above or below, else further away."""
    width = max(text_width(point.name), text_width(point.note, 10))
    gap = point.radius + 4
    places = [(at, y + 2 + shift) for shift in (0, -16, 16, -30, 30, -44, 44) for at in (x + gap, x - gap - width)]

    def box(place: tuple[float, float]) -> tuple[float, float, float, float]:
        return place[0], place[1] - 9, place[0] + width, place[1] + 14

    def free(place: tuple[float, float]) -> bool:
        a = box(place)
        within = a[0] >= frame.left and a[2] <= frame.right + 8 and a[1] >= 0 and a[3] <= frame.bottom
        return within and all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in taken)

    place = next((place for place in places if free(place)), places[0])
    canvas.text(place[0], place[1], point.name, kind="name")
    canvas.text(place[0], place[1] + 11, point.note, kind="tick")
    taken.append(box(place))


def ranges(
    title: str,
    description: str,
    groups: Sequence[Sequence[Range]],
    x_label: str,
    marks: Sequence[tuple[float, str, str]] = (),
    write: Callable[[float], float] = lambda value: value,
) -> Markup:
    """A row a value with its interval, a gap between groups; `marks` are (x, label, kind) upright lines."""
    rows = [row for group in groups for row in group]
    left = _left([row.name for row in rows], 150)
    tail = max(text_width(row.text, 10) for row in rows) + 8
    top = 18.0 if marks else 6.0
    tall = 20 * len(rows) + 8 * (len(groups) - 1)
    canvas = Canvas(WIDTH, top + tall + 40, title, description)
    frame = Frame(left, top, WIDTH - tail, top + tall)
    values = [write(v) for row in rows for v in (row.low, row.high)] + [write(mark[0]) for mark in marks]
    scale = Scale(*spread(values), frame.left, frame.right)
    x_axis(canvas, frame, scale, x_label, most=5)
    for value, label, kind in marks:
        x = scale(write(value))
        canvas.line(x, frame.top - 4, x, frame.bottom, kind)
        if label:
            canvas.text(x, frame.top - 7, label, "middle", "tick")
    heights = [20 * i + 8 * j for i, j in enumerate(j for j, group in enumerate(groups) for _ in group)]
    for row, height in zip(rows, heights, strict=True):
        y = frame.top + height + 10
        canvas.text(left - 6, y + 4, clipped(row.name, left - 8), "end", "name")
        canvas.line(scale(write(row.low)), y, scale(write(row.high)), y, f"{paint(row.slot)} thick")
        canvas.circle(scale(write(row.mean)), y, 3.6, f"{paint(row.slot)} fill", f"{row.name}: {row.text}")
        canvas.text(frame.right + 8, y + 4, row.text, kind="tick")
    return canvas.markup()


def arrows(title: str, description: str, image: str | None, vectors: Sequence[tuple[float, float, int]]) -> Markup:
    """An image with arrows from its middle; (x to the right, y up, slot), together scaled to fit."""
    side = 160.0
    canvas = Canvas(side, side, title, description)
    if image:
        canvas.image(0, 0, side, side, image)
    else:
        canvas.rect(0, 0, side, side, "none")
    longest = max((math.hypot(x, y) for x, y, _ in vectors), default=0) or 1.0
    middle = (side / 2, side / 2)
    strokes = []
    for x, y, slot in vectors:
        to = (middle[0] + x / longest * 0.4 * side, middle[1] - y / longest * 0.4 * side)
        angle = math.atan2(to[1] - middle[1], to[0] - middle[0])
        head = [(to[0] - 9 * math.cos(angle + turn), to[1] - 9 * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
        strokes.append((f"{paint(slot)} arrow", [middle, to], [head[0], to, head[1]]))
    # Outlines below all; the first arrow is thin and on top, so that two which agree are both seen.
    for kind, shaft, head in [("halo", shaft, head) for _, shaft, head in strokes] + strokes[::-1]:
        canvas.path(shaft, kind)
        canvas.path(head, kind)
    return canvas.markup()


def pairs(
    title: str, description: str, names: Sequence[str], first: Sequence[float], second: Sequence[float],
    texts: Sequence[str], slots: tuple[int, int],
) -> Markup:  # fmt: skip
    """Two bars a row from a middle line, each row scaled to its own larger value, and a text behind."""
    left = _left(names, 50)
    tail = max(map(text_width, texts), default=0) + 6
    canvas = Canvas(260, 21 * len(names) + 4, title, description)
    middle, half = left + (260 - left - tail) / 2, (260 - left - tail) / 2 - 2
    for i, name in enumerate(names):
        y = 21 * i + 3
        canvas.text(left - 6, y + 12, clipped(name, left - 8), "end", "name")
        largest = max(abs(first[i]), abs(second[i])) or 1.0
        for row, (value, slot) in enumerate(((first[i], slots[0]), (second[i], slots[1]))):
            width = abs(value) / largest * half
            x = middle if value >= 0 else middle - width
            canvas.rect(x, y + 8 * row, width, 7, f"{paint(slot)} fill", f"{name}: {value:.4g}")
        canvas.text(260 - tail + 6, y + 12, texts[i], kind="tick")
    canvas.line(middle, 0, middle, 21 * len(names) + 2, "axis")
    return canvas.markup()
