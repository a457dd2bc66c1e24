"""Markdown that no renderer takes for anything else: escaping, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from edge_vla.bench.reports.table import Table

MARKS: Final = {"fail": "❌ ", "open": "◻️ ", "pass": "✅ "}


def markdown_table(found: Table) -> Iterator[str]:
    yield _row(found.columns)
    yield "|---|" + "".join("---|" if column in found.prose else "---:|" for column in found.columns[1:])
    for i, row in enumerate(found.rows):
        mark = MARKS.get(found.marks[i], "") if found.marks else ""
        yield _row([mark + row[0], *row[1:]])


def escaped(text: str) -> str:
    """Text that no Markdown renderer takes for markup, and that stays within its cell."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(plain, safe)
    return " ".join(text.replace("*", "\\*").replace("`", "\\`").split())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
