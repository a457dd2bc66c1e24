"""A result in about ten lines of a terminal: the verdict, a row for each system, the gates that did not pass, by name.

Lines are plain and as wide as asked; colours are the terminal's business.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edge_vla.bench.reports import text, verdicts
from edge_vla.bench.reports.systems import SystemResult, failures, systems
from edge_vla.bench.result import Gate, Result

Tone = Literal["good", "bad", "open", "plain", "soft"]
NAME: Final = 24  # columns of a system's name
SHOWN: Final = 5  # gates of one verdict by name
COLUMNS: Final[Mapping[str, Callable[[SystemResult], str]]] = {
    "same token": lambda one: text.share(one.agreement.teacher_forced.mean) if one.agreement else "",
    "same action": lambda one: text.share(one.agreement.exact_action.mean) if one.agreement else "",
    "an action": lambda one: text.milliseconds(one.latency.p50_ms) if one.latency else "",
    "memory": lambda one: text.size(one.peak_bytes) if one.peak_bytes else "",
    "success": lambda one: f"{one.rates['all'].success}/{one.rates['all'].episodes}" if one.rates else "",
}


@dataclass(frozen=True)
class Line:
    text: str
    tone: Tone = "plain"


def columns() -> int:
    """Of this terminal, at least 60; 80 where there is none."""
    return max(60, shutil.get_terminal_size().columns)


def lines(result: Result, width: int) -> list[Line]:
    """What was measured, without where it is kept."""
    states = {gate.passed for gate in result.gates}
    tone: Tone = "bad" if False in states else "good" if True in states else "open"
    found = [Line(line, tone) for line in textwrap.wrap(verdicts.headline(result), width)]
    found += [Line(line) for line in _table(systems(result), width)]
    for failure in failures(result):
        found += [Line(line, "bad") for line in textwrap.wrap(failure, width, subsequent_indent="  ")[:2]]
    for peer in result.peers:
        if peer.failed is not None:
            found += [Line(_cut(f"peer {peer.name} did not run: {peer.failed}", width), "bad")]
    kinds: tuple[tuple[str, bool | None, Tone], ...] = (("failed", False, "bad"), ("undecided", None, "open"))
    for name, passed, colour in kinds:
        gates = [gate for gate in result.gates if gate.passed is passed]
        for gate in gates[:SHOWN]:
            wrapped = textwrap.wrap(_gate(name, gate, result), width, subsequent_indent="  ", break_on_hyphens=False)
            found += [Line(line, colour) for line in wrapped]
        if len(gates) > SHOWN:
            found.append(Line(f"and {len(gates) - SHOWN} more {name}", colour))
    if result.model.name and not result.gates:
        found.append(Line(_cut(f"these figures are about {result.model.name}", width), "soft"))
    return found


def _gate(verdict: str, gate: Gate, result: Result) -> str:
    needed = verdicts.to_decide(gate, result)
    more = f": {needed}" if needed else ""
    return f"{verdict}: {gate.system}: {gate.name} {verdicts.value(gate)} (bound {verdicts.bound(gate)}){more}"


def _table(found: Sequence[SystemResult], width: int) -> list[str]:
    """Columns without any value are left out, and those on the right that do not fit."""
    cells = {title: [write(one) for one in found] for title, write in COLUMNS.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    name = max(12, min(NAME, max(len(one.label) for one in found)))
    rows = [[title.rjust(max(len(title), *map(len, column))), *column] for title, column in cells.items()]
    lines = [_cut(label, name).ljust(name) for label in ["", *(one.label for one in found)]]
    for title, *column in rows:
        size = len(title)
        added = [f"{line}  {cell.rjust(size)}" for line, cell in zip(lines, [title, *column], strict=True)]
        if len(added[0]) <= width:
            lines = added
    return [line.rstrip() for line in lines]


def _cut(line: str, width: int) -> str:
    line = " ".join(line.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
