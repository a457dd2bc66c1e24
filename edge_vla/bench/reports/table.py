"""A table of text: what Markdown, the page and the model card all show. Escaping belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from edge_vla.bench.reports import text

T = TypeVar("T")
Mark = Literal["", "reference", "floor", "candidate", "peer", "pass", "open", "fail"]
Columns = Mapping[str, Callable[[T], str]]  # by title, how a cell is written from a row's figures


@dataclass(frozen=True)
class Row(Generic[T]):
    """A name and the figures that the other columns are written from; `mark` highlights the row."""

    name: str
    figures: T
    mark: Mark = ""


@dataclass(frozen=True)
class Shade:
    """A cell's colour: `depth` in 0..1 is its strength; `strong` cells are bold."""

    depth: float
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """The first column names each row; `prose` are columns of sentences. `shades` by row and column make it a map."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[Mark] = ()
    prose: Collection[str] = ()
    shades: Mapping[tuple[int, int], Shade] = field(default_factory=dict)

    def transposed(self) -> Table:
        """A column a row, without marks and shades."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, columns, rows)


def table(
    title: str, first: str, rows: Iterable[Row[T]], columns: Columns[T], prose: Collection[str] = ()
) -> Table | None:
    """Rows under the names of `first` and `columns`. Columns without any value are left out; None without rows."""
    found = list(rows)
    if not found:
        return None
    cells = {name: [write(row.figures) for row in found] for name, write in columns.items()}
    cells = {name: column for name, column in cells.items() if not set(column) <= {"", text.ABSENT}}
    lines = [[row.name, *(column[i] for column in cells.values())] for i, row in enumerate(found)]
    return Table(title, [first, *cells], lines, [row.mark for row in found], prose)
