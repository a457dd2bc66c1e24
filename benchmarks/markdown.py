"""Cells and tables of Markdown, for the studies' results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from benchmarks.study import Target
from edge_vla.bench.reports.markdown import escaped


class Ends(Protocol):
    """An interval: `mean`, `low` and `high`."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def table(columns: Sequence[str], rows: Iterable[Sequence[str | None]]) -> Iterator[str]:
    """The lines of a table, its first column text and the others numbers; None is an empty cell."""
    yield _row(columns)
    yield "|---|" + "---:|" * (len(columns) - 1)
    for row in rows:
        yield _row(["" if cell is None else cell for cell in row])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def percent(value: float, ends: tuple[float, float] | None = None, digits: int = 1) -> str:
    """A share, with its interval."""
    shown = f"{value:.{digits}%}"
    return shown if ends is None else f"{shown} [{ends[0]:.{digits}%}, {ends[1]:.{digits}%}]"


def share(interval: Ends) -> str:
    return percent(interval.mean, (interval.low, interval.high))


def number(interval: Ends) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def targets(subject: str, found: Sequence[Target]) -> Iterator[str]:
    """What was to be reached, and what was measured."""
    rows = [
        (one.name, f"{one.measured:.4g}", f"{one.comparison} {one.bound:g}", "met" if one.met else "missed")
        for one in found
    ]
    yield from table([subject, "measured", "target", ""], rows)
