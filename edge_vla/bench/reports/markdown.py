"""A result as Markdown, short enough for a CI step summary. Every figure comes from the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_vla.bench.reports import more_tables, sensitivity, tables
from edge_vla.bench.reports import text as words
from edge_vla.bench.reports.systems import Result, failures
from edge_vla.bench.reports.tables import Table

MARKS = {"fail": "❌ ", "open": "◻️ ", "pass": "✅ "}


def markdown(result: Result) -> str:
    """The verdicts in the open, the figures behind them folded."""
    model = result["model"]["name"]
    open_tables = [tables.gates(result), tables.summary(result), more_tables.non_inferiority(result)]
    folded = [
        tables.agreement(result),
        tables.by_dimension(result),
        tables.latency(result),
        tables.stages(result),
        tables.memory(result),
        more_tables.closed_loop(result),
        more_tables.peers(result),
        more_tables.against_peers(result),
        *more_tables.waterfalls(result),
        more_tables.operators(result),
        *sensitivity.tables(result),
        more_tables.limits(result),
        more_tables.conditions(result),
    ]
    lines = [f"# {escaped(result['name'])}", "", f"**{escaped(model)}**: {escaped(result['model']['speaks_for'])}", ""]
    lines += [f"{verdict(result)} {unpublishable(result)}".strip(), ""]
    lines += [line for broken in failures(result) for line in (f"**{escaped(broken)}**", "")]
    for found in open_tables:
        if found:
            lines += [f"## {escaped(found.title)}", "", f"*{escaped(model)}*", "", *markdown_table(found), ""]
    for found in folded:
        if found:
            lines += [f"<details><summary>{escaped(found.title)} · {escaped(model)}</summary>", ""]
            lines += [*markdown_table(found), "", "</details>", ""]
    lines += [f"- {escaped(text)}" for text in (more_tables.ceilings(result), *result["notes"]) if text]
    return "\n".join(lines).rstrip() + "\n"


def verdict(result: Result) -> str:
    """One sentence for all gates."""
    gates = result["gates"]
    if not gates:
        return "No gate was declared."
    failed = [tables.gate_name(gate) for gate in gates if gate["passed"] is False]
    waiting = sum(gate["passed"] is None for gate in gates)
    passed = len(gates) - len(failed) - waiting
    said = f"{words.of(passed, len(gates))} gates passed"
    said += f", {waiting} not judged" if waiting else ""
    return escaped(said + (f"; failed: {', '.join(failed)}." if failed else "."))


def unpublishable(result: Result) -> str:
    """Why these figures must not be quoted; nothing if they may be."""
    environment = result["environment"]
    if environment.get("publishable", True):
        return ""
    return escaped(
        f"Not for publication: {'; '.join(environment.get('unpublishable_because') or ['no reason given'])}."
    )


def markdown_table(found: Table) -> Iterator[str]:
    yield _row(found.columns)
    yield "|" + "|".join(["---"] + ["---" if i in found.prose else "---:" for i in range(1, len(found.columns))]) + "|"
    for i, row in enumerate(found.rows):
        mark = MARKS.get(found.mark(i), "")
        yield _row([mark + row[0], *row[1:]])


def escaped(text: str) -> str:
    """Text that no renderer of Markdown takes for markup, and that stays within its cell."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(plain, safe)
    return " ".join(text.replace("*", "\\*").replace("`", "\\`").split())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
