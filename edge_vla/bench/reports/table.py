"""A table of text: what Markdown, the page and the model card all show. Escaping belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from edge_vla.bench.reports import text

T = TypeVar("T")
Mark = Literal["", "reference", "floor", "candidate", "peer", "pass", "open", "fail"]


@dataclass(frozen=True)
class Row(Generic[T]):
    """A name and the figures that the other columns are written from; `mark` highlights the row."""

    name: str
    figures: T
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """The first column names each row; `prose` are columns of sentences."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[Mark]
    prose: Collection[str] = ()

    def part(self, columns: Collection[str], without: Collection[str] = ()) -> Table:
        """Only some columns, and not the rows named in `without`."""
        kept = [i for i, column in enumerate(self.columns) if i == 0 or column in columns]
        rows = [(row, mark) for row, mark in zip(self.rows, self.marks, strict=True) if row[0] not in without]
        return Table(
            self.title,
            [self.columns[i] for i in kept],
            [[row[i] for i in kept] for row, _ in rows],
            [mark for _, mark in rows],
            self.prose,
        )


def table(
    title: str,
    first: str,
    rows: Iterable[Row[T]],
    columns: Mapping[str, Callable[[T], str]],
    prose: Collection[str] = (),
) -> Table | None:
    """Rows under the names of `first` and `columns`. Columns without any value are left out; None without rows."""
    found = list(rows)
    if not found:
        return None
    cells = {name: [write(row.figures) for row in found] for name, write in columns.items()}
    cells = {name: column for name, column in cells.items() if not set(column) <= {"", text.ABSENT}}
    return Table(
        title,
        [first, *cells],
        [[row.name, *(column[i] for column in cells.values())] for i, row in enumerate(found)],
        [row.mark for row in found],
        prose,
    )
