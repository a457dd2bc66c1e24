"""What changed between two results: A before, B after.

Figures of different models are never put side by side, nor agreements on different frames or with another reference.
Times of two devices are, with a warning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_vla.bench.reports import tables, text
from edge_vla.bench.reports.brief import SHOWN, Line
from edge_vla.bench.reports.markdown import escaped, markdown_table
from edge_vla.bench.reports.systems import SystemResult, systems
from edge_vla.bench.reports.table import Columns, Row, Table, table
from edge_vla.bench.result import Result
from edge_vla.errors import UsageError

WARNINGS: Final = {
    "device": "times and memory are of two machines",
    "threads": "times are of two settings",
    "torch": "torch itself may explain a change",
}


@dataclass(frozen=True)
class Measured:
    """A figure of one system, as text too. `ends` are its interval's. More is better of a share, less of all others."""

    value: float
    shown: str
    ends: tuple[float, float] | None = None
    share: bool = False


@dataclass(frozen=True)
class Change:
    a: Measured
    b: Measured

    @property
    def significant(self) -> bool | None:
        """Whether the intervals are apart; None where there are none."""
        if self.a.ends is None or self.b.ends is None:
            return None
        return self.a.ends[1] < self.b.ends[0] or self.b.ends[1] < self.a.ends[0]

    @property
    def better(self) -> bool:
        return (self.b.value > self.a.value) == self.a.share


@dataclass(frozen=True)
class Comparison:
    """`warnings` say what in the table to distrust, and what was left out of it."""

    model: str
    warnings: Sequence[str]
    table: Table | None
    changes: Mapping[str, Change]

    def brief(self, width: int) -> list[Line]:
        """In about ten lines: how many figures changed, those beyond their intervals by name, what to distrust."""
        sure = {name: one for name, one in self.changes.items() if one.significant}
        better = sum(one.better for one in sure.values())
        equal = all(one.a == one.b for one in self.changes.values())
        if not self.changes:
            found = [Line("The two results have no figure in common.", "open")]
        elif equal:
            found = [Line(f"Nothing changed: all {len(self.changes)} figures are equal.", "good")]
        else:
            sentence = (
                f"{len(self.changes)} figures: {better} better, {len(sure) - better} worse beyond their intervals."
            )
            found = [Line(sentence, "bad" if better < len(sure) else "good")]
        for name, one in [*sure.items()][:SHOWN]:
            change = f"{name}: {one.a.shown} → {one.b.shown}"
            found += [Line(line, "good" if one.better else "bad") for line in textwrap.wrap(change, width)]
        if len(sure) > SHOWN:
            found.append(Line(f"and {len(sure) - SHOWN} more"))
        for warning in self.warnings:
            wrapped = textwrap.wrap(f"note: {warning}", width, subsequent_indent="  ")
            found += [Line(line, "open") for line in wrapped]
        return found

    def markdown(self) -> str:
        lines = [f"# {escaped(self.model)}: what changed", ""]
        lines += [f"- {escaped(warning)}" for warning in self.warnings] + [""] * bool(self.warnings)
        lines += markdown_table(self.table) if self.table else ["The two results have no figure in common."]
        return "\n".join(lines) + "\n"


def compare(a: Result, b: Result) -> Comparison:
    """Raises UsageError if the two are about different models."""
    if a.model.name != b.model.name:
        raise UsageError(f"results about {a.model.name} and {b.model.name}: compare two of the same model")
    same_frames = (a.frames.sha256, a.frames.preprocess) == (b.frames.sha256, b.frames.preprocess)
    same_task = same_frames and a.reference.identity == b.reference.identity
    before, after = ({one.name: dict(_measured(one, same_task)) for one in systems(result)} for result in (a, b))
    changes = {
        f"{name}: {measure}": Change(measured, after[name][measure])
        for name in before
        for measure, measured in before[name].items()
        if measure in after.get(name, ())
    }
    rows = [
        Row(name, change, ("pass" if change.better else "fail") if change.significant else "")
        for name, change in changes.items()
    ]
    warnings = [*_warnings(a, b), *_missing(before, after, "A"), *_missing(after, before, "B")]
    shown = table("What changed", "system: measure", rows, COLUMNS, ["significant"])
    return Comparison(a.model.name, warnings, shown, changes)


COLUMNS: Final[Columns[Change]] = {
    "A": lambda one: one.a.shown,
    "B": lambda one: one.b.shown,
    "change": lambda one: (
        f"{text.signed(one.b.value - one.a.value)} pp"
        if one.a.share
        else (f"×{one.b.value / one.a.value:.3f}" if one.a != one.b else "equal")
    ),
    "significant": lambda one: {None: text.ABSENT, False: "no: intervals overlap", True: "yes"}[one.significant],
}


def _change(one: Change) -> str:
    if one.a == one.b:
        return "equal"
    difference = one.b.value - one.a.value
    return f"{text.signed(difference)} pp" if one.a.share else f"×{one.b.value / one.a.value:.3f}"


def _warnings(a: Result, b: Result) -> Iterator[str]:
    if a.frames.sha256 != b.frames.sha256:
        yield f"Different frames ({a.frames.name}, {b.frames.name}): agreement is left out."
    if a.frames.preprocess != b.frames.preprocess:
        yield f"Different --preprocess ({a.frames.preprocess}, {b.frames.preprocess}): agreement is left out."
    if a.reference.identity != b.reference.identity:
        yield f"Different references ({a.reference.name}, {b.reference.name}): agreement is left out."
    for field, consequence in WARNINGS.items():
        ours, theirs = (getattr(result.provenance, field) for result in (a, b))
        if ours != theirs:
            yield f"{field}: {ours} and {theirs}: {consequence}."
    for name, result in (("A", a), ("B", b)):
        if reasons := tables.unpublishable(result):
            yield f"{name} is not for publication: {'; '.join(reasons)}."


def _missing(here: Collection[str], there: Collection[str], name: str) -> Iterator[str]:
    if alone := [system for system in here if system not in there]:
        yield f"Only in {name}: {', '.join(alone)}."


def _measured(one: SystemResult, same_task: bool) -> Iterator[tuple[str, Measured]]:
    if same_task and (found := one.agreement):
        for name, share in (
            ("same token", found.teacher_forced),
            ("same token, given its own previous tokens", found.free_running),
            ("same action", found.exact_action),
        ):
            yield name, Measured(share.mean, text.interval(share), (share.low, share.high), share=True)
    for mode, times in one.performance.latency.items():
        yield f"{mode}, p50", Measured(times.p50_ms, text.milliseconds(times.p50_ms), times.p50_interval_ms)
        if times.p99_ms:
            yield f"{mode}, p99", Measured(times.p99_ms, text.milliseconds(times.p99_ms))
    for name, size in (("peak memory", one.peak_bytes), ("on disk", one.disk_bytes)):
        if size:
            yield name, Measured(size, text.size(size))
