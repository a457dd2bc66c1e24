"""What changed between two results: A before, B after.

Figures of different models are never put side by side, nor agreements on different frames or with another reference.
Times of two devices are, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.markdown import escaped, markdown_table, unpublishable_reasons
from edge_vla.bench.reports.systems import SystemResult, systems
from edge_vla.bench.reports.table import Mark, Row, Table, table
from edge_vla.bench.result import Agreement, Interval, Latency, Result
from edge_vla.errors import UsageError

AGREEMENTS: Final[Mapping[str, Callable[[Agreement], Interval]]] = {
    "same token": lambda one: one.teacher_forced,
    "same token, given its own previous tokens": lambda one: one.free_running,
    "same action": lambda one: one.exact_action,
}
WARNINGS: Final = {
    "device": "times and memory are of two machines",
    "threads": "times are of two settings",
    "torch": "torch itself may explain a change",
}


@dataclass(frozen=True)
class Change:
    """`significant`: whether the intervals are apart; None where there are none."""

    before: str
    after: str
    change: str
    significant: bool | None = None
    better: bool = False

    @property
    def mark(self) -> Mark:
        return ("pass" if self.better else "fail") if self.significant else ""


@dataclass(frozen=True)
class Comparison:
    """`warnings` say what in the table to distrust, and what was left out of it."""

    model: str
    warnings: Sequence[str]
    table: Table | None

    def markdown(self) -> str:
        lines = [f"# {escaped(self.model)}: what changed", ""]
        lines += [f"- {escaped(warning)}" for warning in self.warnings] + [""] * bool(self.warnings)
        lines += markdown_table(self.table) if self.table else ["The two results have no figure in common."]
        return "\n".join(lines) + "\n"


def compare(a: Result, b: Result) -> Comparison:
    """Raises UsageError if the two are about different models."""
    if a.model.name != b.model.name:
        raise UsageError(f"results about {a.model.name} and {b.model.name}: compare two of the same model")
    same_task = a.frames.sha256 == b.frames.sha256 and a.reference.identity == b.reference.identity
    before, after = ({one.name: one for one in systems(result)} for result in (a, b))
    rows = [
        Row(f"{name}: {measure}", change, change.mark)
        for name in before
        if name in after
        for measure, change in _changes(before[name], after[name], same_task)
    ]
    columns: dict[str, Callable[[Change], str]] = {
        "A": lambda one: one.before,
        "B": lambda one: one.after,
        "change": lambda one: one.change,
        "significant": lambda one: {None: text.ABSENT, False: "no: intervals overlap", True: "yes"}[one.significant],
    }
    found = table("What changed", "system: measure", rows, columns, prose=["significant"])
    warnings = [*_warnings(a, b), *_missing(before, after, "A"), *_missing(after, before, "B")]
    return Comparison(a.model.name, warnings, found)


def _warnings(a: Result, b: Result) -> Iterator[str]:
    if a.frames.sha256 != b.frames.sha256:
        yield f"Different frames ({a.frames.name}, {b.frames.name}): agreement is left out."
    if a.reference.identity != b.reference.identity:
        yield f"Different references ({a.reference.name}, {b.reference.name}): agreement is left out."
    for field, consequence in WARNINGS.items():
        ours, theirs = (getattr(result.provenance, field) for result in (a, b))
        if ours != theirs:
            yield f"{field}: {ours} and {theirs}: {consequence}."
    for name, result in (("A", a), ("B", b)):
        if reasons := unpublishable_reasons(result):
            yield f"{name} is not for publication: {'; '.join(reasons)}."


def _missing(here: Collection[str], there: Collection[str], name: str) -> Iterator[str]:
    if alone := [system for system in here if system not in there]:
        yield f"Only in {name}: {', '.join(alone)}."


def _changes(a: SystemResult, b: SystemResult, same_task: bool) -> Iterator[tuple[str, Change]]:
    if same_task and a.agreement and b.agreement:
        for measure, interval in AGREEMENTS.items():
            yield measure, _agreement(interval(a.agreement), interval(b.agreement))
    for mode, before in a.performance.latency.items():
        if (after := b.performance.latency.get(mode)) is not None:
            yield from _times(mode, before, after)
    yield from _ratio("peak memory", a.peak_bytes, b.peak_bytes, write=text.size)
    yield from _ratio("on disk", a.disk_bytes, b.disk_bytes, write=text.size)


def _agreement(a: Interval, b: Interval) -> Change:
    change = f"{text.signed(b.mean - a.mean)} pp"
    apart = _apart((a.low, a.high), (b.low, b.high))
    return Change(text.interval(a), text.interval(b), change, apart, b.mean > a.mean)


def _times(mode: str, a: Latency, b: Latency) -> Iterator[tuple[str, Change]]:
    apart = _apart(a.p50_interval_ms, b.p50_interval_ms)
    yield from _ratio(f"{mode}, p50", a.p50_ms, b.p50_ms, write=text.milliseconds, significant=apart)
    yield from _ratio(f"{mode}, p99", a.p99_ms, b.p99_ms, write=text.milliseconds)


def _ratio(
    measure: str,
    before: float | None,
    after: float | None,
    *,
    write: Callable[[float], str],
    significant: bool | None = None,
) -> Iterator[tuple[str, Change]]:
    if before and after:
        ratio = f"×{after / before:.3f}"
        yield measure, Change(write(before), write(after), ratio, significant, after < before)


def _apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[1] < b[0] or b[1] < a[0]
