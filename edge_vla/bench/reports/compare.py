"""What changed between two results: A before, B after.

Figures of different models are never put side by side, nor agreements on different frames or with another reference.
Times of two devices are, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.markdown import escaped, markdown_table
from edge_vla.bench.reports.systems import Result, Side, sides
from edge_vla.bench.reports.tables import Table, table
from edge_vla.errors import UsageError

AGREEMENTS: Final = {
    "same token": "teacher_forced",
    "same token, own tokens before it": "free_running",
    "same action": "exact_action",
}


@dataclass(frozen=True)
class Comparison:
    """`warnings` say what of the table to distrust and what was left out of it."""

    model: str
    warnings: Sequence[str]
    table: Table | None

    def markdown(self) -> str:
        lines = [f"# {escaped(self.model)}: what changed", ""]
        lines += [f"- {escaped(warning)}" for warning in self.warnings] + [""] * bool(self.warnings)
        lines += markdown_table(self.table) if self.table else ["Nothing that both measured."]
        return "\n".join(lines) + "\n"


def compare(a: Result, b: Result) -> Comparison:
    """Raises UsageError if the two are of different models or formats."""
    for key in ("kind", "version"):
        if a.get(key) != b.get(key):
            raise UsageError(f"{key} {a.get(key)!r} and {b.get(key)!r}: these results do not compare")
    if a["model"]["name"] != b["model"]["name"]:
        raise UsageError(
            f"one result is about {a['model']['name']}, the other about {b['model']['name']}: "
            "figures of different models do not compare"
        )
    judged = _same_questions(a, b)
    rows, marks = [], []
    ours, theirs = ({side.name: side for side in sides(result)} for result in (a, b))
    for name, side in ours.items():
        if name in theirs:
            for row, mark in _rows(side, theirs[name], judged):
                rows.append(row)
                marks.append(mark)
    warnings = [*_warnings(a, b), *_missing(ours, theirs, "A"), *_missing(theirs, ours, "B")]
    found = table("What changed", ["side, measure", "A", "B", "change", "told apart"], rows, marks, prose=[4])
    return Comparison(a["model"]["name"], warnings, found)


def _same_questions(a: Result, b: Result) -> bool:
    same_frames = a["frames"]["sha256"] == b["frames"]["sha256"]
    return bool(same_frames and a["reference"]["identity"] == b["reference"]["identity"])


def _warnings(a: Result, b: Result) -> Iterator[str]:
    if a["frames"]["sha256"] != b["frames"]["sha256"]:
        yield f"Different frames ({a['frames']['name']}, {b['frames']['name']}): agreement is left out."
    if a["reference"]["identity"] != b["reference"]["identity"]:
        yield f"Different references ({a['reference']['name']}, {b['reference']['name']}): agreement is left out."
    for key, consequence in (
        ("device", "times and memory are of two machines"),
        ("threads", "times are of two settings"),
        ("torch", "a change may be torch's"),
    ):
        if a["environment"][key] != b["environment"][key]:
            yield f"{key}: {a['environment'][key]} and {b['environment'][key]}: {consequence}."
    for name, result in (("A", a), ("B", b)):
        reasons = result["environment"].get("unpublishable_because")
        if not result["environment"].get("publishable", True):
            yield f"{name} is not for publication: {'; '.join(reasons or ['no reason given'])}."


def _missing(here: dict[str, Side], there: dict[str, Side], name: str) -> Iterator[str]:
    alone = [side for side in here if side not in there]
    if alone:
        yield f"Only in {name}: {', '.join(alone)}."


def _rows(a: Side, b: Side, judged: bool) -> Iterator[tuple[list[str], str]]:
    if judged and a.agreement and b.agreement:
        for what, key in AGREEMENTS.items():
            before, after = a.agreement[key], b.agreement[key]
            change = text.points({"mean": after["mean"] - before["mean"], "low": 0, "high": 0}).partition(" [")[0]
            apart = _apart((before["low"], before["high"]), (after["low"], after["high"]))
            yield _row(a, what, text.interval(before), text.interval(after), change, apart, before, after, True)
    for mode in a.latency:
        if mode in b.latency:
            yield from _times(a, mode, a.latency[mode], b.latency[mode])
    memory = [(side.memory or {}).get("peak_bytes") for side in (a, b)]
    yield from _sizes(a, "peak memory", memory)
    yield from _sizes(a, "on disk", [a.disk_bytes, b.disk_bytes])


def _times(side: Side, mode: str, before: Result, after: Result) -> Iterator[tuple[list[str], str]]:
    for key in ("p50_ms", "p99_ms"):
        values = before.get(key), after.get(key)
        if values[0] and values[1]:
            spreads: list[Any] = [before.get("p50_interval"), after.get("p50_interval")]
            apart = _apart(*spreads) if key == "p50_ms" and spreads[0] and spreads[1] else None
            told = [text.milliseconds(value) for value in values]
            name = f"{mode}, {key.removesuffix('_ms')}"
            yield _row(side, name, told[0], told[1], f"×{values[1] / values[0]:.3f}", apart, *values, False)


def _sizes(side: Side, what: str, values: Sequence[int | None]) -> Iterator[tuple[list[str], str]]:
    before, after = values
    if before and after:
        told = [text.size(before), text.size(after)]
        yield _row(side, what, told[0], told[1], f"×{after / before:.3f}", None, before, after, False)


def _row(
    side: Side, what: str, a: str, b: str, change: str, apart: bool | None, before: Any, after: Any, up: bool
) -> tuple[list[str], str]:
    """`up`: more is better. Only what the intervals tell apart is marked."""
    mean: Callable[[Any], float] = lambda value: value["mean"] if isinstance(value, dict) else value  # noqa: E731
    better = (mean(after) > mean(before)) == up
    said = {None: text.ABSENT, False: "no: intervals overlap", True: "yes"}[apart]
    return [f"{side.name}: {what}", a, b, change, said], ("pass" if better else "fail") if apart else ""


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[1] < b[0] or b[1] < a[0]
