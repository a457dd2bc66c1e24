"""A result as Markdown, short enough for a CI step summary. Every figure comes from the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from edge_vla.bench.reports import agreement_tables, performance_tables, sensitivity, tables
from edge_vla.bench.reports.systems import failures
from edge_vla.bench.reports.table import Table
from edge_vla.bench.result import Result

MARKS: Final = {"fail": "❌ ", "open": "◻️ ", "pass": "✅ "}


def markdown(result: Result) -> str:
    """The verdicts in the open, the figures behind them folded."""
    model = escaped(result.model.name)
    lines = [f"# {escaped(result.name)}", "", f"**{model}**: {escaped(result.model.scope)}", ""]
    lines += [f"{verdict(result)} {unpublishable(result)}".strip(), ""]
    lines += [line for failure in failures(result) for line in (f"**{escaped(failure)}**", "")]
    for found in (tables.gates(result, False, None), tables.summary(result), tables.non_inferiority(result)):
        if found:
            lines += [f"## {escaped(found.title)}", "", f"*{model}*", "", *markdown_table(found), ""]
    for found in _folded(result):
        if found:
            lines += [f"<details><summary>{escaped(found.title)} · {model}</summary>", "", *markdown_table(found), ""]
            lines += ["</details>", ""]
    notes = [performance_tables.ceilings(result.limits), *result.notes]
    lines += [f"- {escaped(note)}" for note in notes if note]
    return "\n".join(lines).rstrip() + "\n"


def _folded(result: Result) -> list[Table | None]:
    return [
        tables.gates(result),
        agreement_tables.agreement(result),
        agreement_tables.by_dimension(result),
        performance_tables.latency(result),
        performance_tables.stages(result),
        performance_tables.memory(result),
        tables.closed_loop(result),
        tables.peers(result),
        tables.against_peers(result),
        *performance_tables.stage_profiles(result),
        *sensitivity.tables(result),
        performance_tables.limits(result.limits),
        tables.conditions(result),
    ]


def verdict(result: Result) -> str:
    return escaped(tables.verdict(result))


def unpublishable(result: Result) -> str:
    """Why these figures must not be quoted; nothing if they may be."""
    reasons = "; ".join(unpublishable_reasons(result))
    return escaped(f"Not for publication: {reasons}.") if reasons else ""


def unpublishable_reasons(result: Result) -> list[str]:
    state = result.provenance.device_state
    if state is None or state.publishable:
        return []
    return state.unpublishable_because or ["no reason was recorded"]


def markdown_table(found: Table) -> Iterator[str]:
    yield _row(found.columns)
    yield "|---|" + "".join("---|" if column in found.prose else "---:|" for column in found.columns[1:])
    for row, mark in zip(found.rows, found.marks, strict=True):
        yield _row([MARKS.get(mark, "") + row[0], *row[1:]])


def escaped(text: str) -> str:
    """Text that no Markdown renderer takes for markup, and that stays within its cell."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(plain, safe)
    return " ".join(text.replace("*", "\\*").replace("`", "\\`").split())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
