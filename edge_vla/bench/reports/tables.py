"""A result as tables of words: what every renderer shows, worked out once.

Cells are plain text; escaping belongs to the renderers. A table that would have no row is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.systems import Result, Side, dims, judged, shown, sides, timed

PERCENTILES: Final = ("p50", "p90", "p95", "p99", "p999")
VERDICTS: Final = {False: "failed", None: "not judged", True: "passed"}


@dataclass(frozen=True)
class Table:
    """The first column names a row. `marks`: one word a row for the eye (`fail`, `floor`), or none at all."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[str] = ()
    prose: frozenset[int] = frozenset()  # columns of sentences, not of figures

    def mark(self, row: int) -> str:
        return self.marks[row] if self.marks else ""


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Sequence[str] = (),
    prose: Sequence[int] = (),
) -> Table | None:
    """A table without the columns that are empty in every row; None without rows."""
    if not rows:
        return None
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] not in ("", text.ABSENT) for row in rows)]
    return Table(
        title,
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        marks,
        frozenset(new for new, old in enumerate(kept) if old in prose),
    )


def ranked_gates(result: Result) -> list[Result]:
    order = list(VERDICTS)
    return sorted(result["gates"], key=lambda gate: order.index(gate["passed"]))


def gate_name(gate: Result) -> str:
    """With its side, unless it names it."""
    return gate["name"] if gate["side"] in gate["name"] else f"{gate['side']}: {gate['name']}"


def gates(result: Result) -> Table | None:
    """What failed first, then what was not judged, then what passed."""
    ranked = ranked_gates(result)
    return table(
        "Gates",
        ["gate", "verdict", "value", "bound", "why"],
        [
            [
                gate_name(gate),
                VERDICTS[gate["passed"]],
                text.value_of(gate["value"]),
                text.value_of(gate["bound"]),
                gate["why"],
            ]
            for gate in ranked
        ],
        [{False: "fail", None: "open", True: "pass"}[gate["passed"]] for gate in ranked],
        prose=[1, 4],
    )


def summary(result: Result) -> Table | None:
    """One row a side: agreement, speed, size, success."""
    rows = []
    for side in sides(result):
        latency, agreement = side.headline or {}, side.agreement or {}
        rows.append(
            [
                shown(side),
                text.interval(agreement.get("teacher_forced")),
                text.interval(agreement.get("exact_action")),
                _high_margin(agreement),
                text.hertz(latency.get("hz")),
                text.milliseconds(latency.get("p50_ms")),
                text.size((side.memory or {}).get("peak_bytes")),
                text.size(side.disk_bytes),
                success(result, side),
            ]
        )
    return table(
        "Every side in one row",
        [
            "side",
            "same token",
            "same action",
            "clear leads flipped",
            "rate",
            "p50",
            "peak memory",
            "on disk",
            "success",
        ],
        rows,
        [side.role for side in sides(result)],
    )


def success(result: Result, side: Side) -> str:
    """Pooled closed-loop success, from the first regime."""
    if side.role == "reference":
        rates = (result.get("reference_measured") or {}).get("closed_loop_rates")
    else:
        regimes = (side.closed_loop or {}).get("regimes") or {}
        rates = next((regime["candidate"] for regime in regimes.values()), None)
    return _rate(rates["all"]) if rates else text.ABSENT


def _rate(rate: Result) -> str:
    low, high = (text.share(rate[bound], 0) for bound in ("low", "high"))
    return f"{text.of(rate['success'], rate['episodes'])} [{low.removesuffix('%')}, {high}]"


def _high_margin(agreement: Result) -> str:
    high = (agreement.get("margins") or {}).get("high_margin")
    return text.of(high["flips"], high["positions"]) if high else text.ABSENT


def agreement(result: Result) -> Table | None:
    """One row a measure, one column a side, floors first."""
    found = judged(result)
    measures: list[tuple[str, Callable[[Any], str]]] = [
        ("same token, reference's tokens before it", lambda a: text.interval(a["teacher_forced"])),
        ("lowest dimension, Holm-corrected bound", _holm),
        ("same token, own tokens before it", lambda a: text.interval(a["free_running"])),
        ("all tokens of the action", lambda a: text.interval(a["exact_tokens"])),
        ("same action", lambda a: text.interval(a["exact_action"])),
        ("bins apart: mean, p99, largest", _apart),
        ("within 1 bin", lambda a: text.share(a["bins_apart"]["within_1"])),
        ("within 2 bins", lambda a: text.share(a["bins_apart"]["within_2"])),
        ("more than 8 bins", lambda a: text.share(a["bins_apart"]["beyond_8"])),
        ("clear leads flipped", _high_margin),
        (
            "near ties flipped",
            lambda a: _part(a, "margins", "near_tie", lambda m: text.of(m["flips"], m["positions"])),
        ),
        ("gripper open or closed otherwise", lambda a: _part(a, "gripper", "flips", text.interval)),
        ("gripper change moved by, steps: mean, largest", _shift),
        ("gripper changes compared", lambda a: _part(a, "gripper", "transitions", text.number)),
        ("NRMSE of the action", lambda a: _part(a, "robot_units", "nrmse", text.number)),
        ("KL divergence from the reference, nats", lambda a: _part(a, "kl", "all", text.plain_interval)),
        ("expected action apart, bins", lambda a: _part(a, "soft_action_l1", "mean", text.number)),
        ("mass outside the action ids", lambda a: _part(a, "outside_mass", "candidate_mean", text.number)),
        ("would not have been an action id", lambda a: _part(a, "invalid", "candidate", text.share)),
        ("drift over 10 steps, share of range", lambda a: _part(a, "drift", "10", lambda d: text.number(d["mean"]))),
        ("drift over 50 steps, share of range", lambda a: _part(a, "drift", "50", lambda d: text.number(d["mean"]))),
        ("design effect of frames in episodes", lambda a: text.number(a["teacher_forced"].get("deff"), 2)),
    ]
    rows = [[name, *(measure(side.agreement) for side in found)] for name, measure in measures]
    rows = [row for row in rows if set(row[1:]) != {text.ABSENT}]
    return table("Agreement with the reference", ["measure", *map(shown, found)], rows if found else [])


def _part(agreement: Result, group: str, key: str, write: Callable[[Any], str]) -> str:
    value = (agreement.get(group) or {}).get(key)
    return text.ABSENT if value is None else write(value)


def _holm(agreement: Result) -> str:
    lowest = agreement.get("teacher_forced_lowest_holm")
    return f"{lowest['dimension']}: {text.share(lowest['low'])}" if lowest else text.ABSENT


def _apart(agreement: Result) -> str:
    apart = agreement["bins_apart"]
    return f"{text.number(apart['mean'])}, {text.number(apart['p99'])}, {text.number(apart['max'])}"


def _shift(agreement: Result) -> str:
    shift = (agreement.get("gripper") or {}).get("shift_steps") or {}
    if shift.get("mean") is None:
        return text.ABSENT
    return f"{text.number(shift['mean'], 2)}, {text.number(shift['max'])}"


def by_dimension(result: Result, key: str = "teacher_forced_by_dimension") -> Table | None:
    names = dims(result)
    found = [side for side in judged(result) if side.agreement and side.agreement.get(key)]
    rows = [[shown(side), *map(text.interval, (side.agreement or {})[key])] for side in found]
    kind = "reference's tokens" if key.startswith("teacher") else "own tokens"
    return table(f"Same token by dimension, {kind} before it", ["side", *names], rows, [side.role for side in found])


def robot_units(result: Result) -> Table | None:
    rows, marks = [], []
    for side in judged(result):
        units = (side.agreement or {}).get("robot_units")
        if not units:
            continue
        for name, entry in zip(dims(result), units["by_dimension"], strict=True):
            keys = ("mean", "p95", "p99", "max", "nrmse")
            rows.append([f"{shown(side)}, {name}", *(text.number(entry[key]) for key in keys)])
            marks.append(side.role)
    return table("Action apart, in robot units", ["side, dimension", "mean", "p95", "p99", "max", "NRMSE"], rows, marks)


def phases(result: Result) -> Table | None:
    rows, marks = [], []
    for side in judged(result):
        for name, phase in ((side.agreement or {}).get("by_phase") or {}).items():
            rows.append(
                [
                    f"{shown(side)}, {name}",
                    f"{phase['frames']:,}",
                    text.interval(phase["teacher_forced"]),
                    text.interval(phase["exact_action"]),
                ]
            )
            marks.append(side.role)
    return table("Agreement by phase", ["side, phase", "frames", "same token", "same action"], rows, marks)


def recorded(result: Result) -> Table | None:
    """Against what was recorded: disagreeing with the reference may be harmless, or helpful."""
    rows = []
    for side in judged(result):
        against = (side.agreement or {}).get("against_recorded")
        if against:
            rows.append(
                [
                    shown(side),
                    text.interval(against["candidate"]["equal"]),
                    text.interval(against["reference"]["equal"]),
                    text.points(against.get("equal_difference")),
                ]
            )
    return table("Token equal to the recorded action's", ["side", "side", "reference", "difference, paired"], rows)


def deciles(result: Result) -> Table | None:
    found = [side for side in judged(result) if _deciles(side)]
    rows = []
    for i in range(max((len(_deciles(side)) for side in found), default=0)):
        at = [_deciles(side)[i] for side in found if i < len(_deciles(side))]
        span = f"{text.number(at[0].get('from'), 2)} to {text.number(at[0].get('to'), 2)}"
        rows.append([f"{i + 1}", span, *(text.of(entry["flips"], entry["positions"]) for entry in at)])
    return table("Flips by the reference's lead", ["decile", "lead, logits", *map(shown, found)], rows)


def _deciles(side: Side) -> Sequence[Result]:
    found: Sequence[Result] = ((side.agreement or {}).get("margins") or {}).get("deciles") or ()
    return found


def latency(result: Result) -> Table | None:
    """One row a side and mode. A percentile that the sample cannot carry says why."""
    rows = []
    for side in timed(result):
        for mode, entry in side.latency.items():
            misses = entry.get("deadline_misses")
            rows.append(
                [
                    f"{side.name}, {mode}",
                    f"{entry['queries']:,}",
                    *(_percentile(entry, name) for name in PERCENTILES),
                    text.milliseconds(entry.get("max_ms")),
                    text.share(entry.get("cov")),
                    text.hertz(entry.get("hz")),
                    text.hertz(entry.get("sustained_hz")),
                    text.ABSENT if misses is None else f"{text.of(misses, entry['queries'])}",
                ]
            )
    columns = ["side, mode", "queries", "p50", "p90", "p95", "p99", "p99.9", "largest", "CoV", "rate", "sustained"]
    return table("Latency of one action", [*columns, "deadline missed"], rows)


def _percentile(entry: Result, name: str) -> str:
    value = entry.get(f"{name}_ms")
    if value is None:
        return str((entry.get("refused") or {}).get(name, text.ABSENT))
    spread = entry.get("p50_interval") if name == "p50" else None
    if not spread:
        return text.milliseconds(value)
    low, high = (text.milliseconds(bound).partition(" ")[0] for bound in spread)
    return f"{text.milliseconds(value)} [{low}, {high}]"


def stages(result: Result) -> Table | None:
    rows = []
    for side in timed(result):
        entry = side.headline or {}
        for stage in entry.get("stages") or ():
            name = f"{side.name}, {stage['name']}"
            rows.append([name, text.milliseconds(stage["p50_ms"]), text.share(stage.get("share"))])
        if entry.get("stages") and entry.get("unattributed_ms") is not None:
            left, whole = entry["unattributed_ms"], entry.get("p50_ms")
            part = text.share(left / whole) if whole else text.ABSENT
            rows.append([f"{side.name}, in no stage", text.milliseconds(left), part])
    return table("Where the time goes", ["side, stage", "p50", "share"], rows)


def start(result: Result) -> Table | None:
    rows = []
    for side in timed(result):
        entry = side.headline or {}
        cold, warm = entry.get("cold") or {}, entry.get("warm_up")
        ready = cold.get("ready_s")
        state = f"{warm['queries']} queries, {'stable' if warm['stable'] else 'not stable'}" if warm else text.ABSENT
        rows.append(
            [
                side.name,
                text.ABSENT if ready is None else f"{ready:.2f} s",
                text.milliseconds(cold.get("first_ms")),
                state,
                text.number(entry.get("repeat_ratio")),
            ]
        )
    return table("Start", ["side", "ready after", "first action", "warm-up", "repeated ÷ varied frames, p50"], rows)


def memory(result: Result) -> Table | None:
    found = [side for side in sides(result) if side.memory]
    parts = list(dict.fromkeys(part for side in found for part in (side.memory or {}).get("weights") or ()))
    rows = []
    for side in found:
        entry = side.memory or {}
        weights = entry.get("weights") or {}
        keys = ("load_peak_bytes", "steady_bytes", "peak_bytes", "pss_peak_bytes")
        rows.append(
            [
                side.name,
                *(text.size(weights.get(part)) for part in parts),
                *(text.size(entry.get(key)) for key in keys),
                text.size(side.disk_bytes),
            ]
        )
    columns = ["side", *(f"weights: {part}" for part in parts), "peak loading", "steady", "peak", "peak PSS", "on disk"]
    return table("Memory of the side's own process", columns, rows)
