"""What was asked for on an H200, and what a run shows of it: one row a bar, met, missed or not measured.

Knows the run's result; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.gpu.forms import DRAFTED, DRAFTS_ON, FORMS

Parts = Mapping[str, Any]
INT4: Final = [name for name in FORMS if name.startswith("int4")]
INT8: Final = [name for name in FORMS if name.startswith("int8")]
EAGER, NF4 = "hf bf16, eager", "bitsandbytes nf4"


@dataclass(frozen=True)
class Bar:
    """`value` reads the parts; None where they do not hold it. `most` or `least` is the bar."""

    what: str
    unit: str
    value: Callable[[Parts], float | None]
    most: float | None = None
    least: float | None = None
    goal: float | None = None

    def judge(self, parts: Parts) -> dict[str, Any]:
        try:
            value = self.value(parts)
        except (KeyError, TypeError, ValueError, StopIteration):
            value = None
        met = None
        if value is not None:
            met = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        words = {None: "not measured", True: "met", False: "missed"}[met]
        bar = {name: one for name in ("most", "least", "goal") if (one := getattr(self, name)) is not None}
        return {"what": self.what, "unit": self.unit, "bar": bar, "value": value, "verdict": words}


def _p50(parts: Parts, side: str) -> float:
    return float(parts["latency"]["sides"][side]["p50_ms"])


def _best(parts: Parts, sides: Sequence[str]) -> str:
    """The fastest of these that was timed."""
    timed = parts["latency"]["sides"]
    return min((side for side in sides if "p50_ms" in timed.get(side, {})), key=lambda side: _p50(parts, side))


def _faster(parts: Parts, ours: str, other: str) -> float:
    """In the part where the two took turns."""
    turns = [part["times_faster"].get(ours, {}) for part in parts.values() if "times_faster" in part]
    return float(next(found[other]["ratio"] for found in turns if other in found))


def _share(parts: Parts, form: str, stage: str) -> float:
    return float(parts[f"stages: {form}"]["stages"][stage]["share"])


def _of_copy(parts: Parts, form: str) -> float:
    """What a decode step reads over what a copy moves."""
    reached = parts[f"stages: {form}"]["stages"]["one step"]["gb_per_s"]
    return float(reached) * 1e9 / float(parts["ceilings"]["read_bytes_per_s"])


def _differ(parts: Parts) -> float:
    return float(sum(row["differ_above_the_noise"] for row in parts["demo tokens"]["forms"]))


def _failing(parts: Parts) -> float:
    return float(parts["kernels"]["of"] - parts["kernels"]["passed"])


BARS: Final[Sequence[Bar]] = (
    Bar("bf16", "ms", lambda parts: _p50(parts, "bf16"), most=32),
    Bar("bf16 against eager HF", "times", lambda parts: _faster(parts, "bf16", EAGER), least=4),
    Bar("int8, the faster prefill", "ms", lambda parts: _p50(parts, _best(parts, INT8)), most=21),
    Bar("int4, the fastest prefill", "ms", lambda parts: _p50(parts, _best(parts, INT4)), most=15),
    Bar("int4 against our bf16", "times", lambda parts: _faster(parts, _best(parts, INT4), "bf16"), least=2),
    Bar("int4, w4a8 prefill, against bitsandbytes NF4", "times", lambda parts: _faster(parts, DRAFTS_ON, NF4), least=3),
    Bar("int4, int8 prefill and towers, drafts", "ms", lambda parts: _p50(parts, DRAFTED), most=9),
    Bar("decode step int4, of copying", "share", lambda parts: _of_copy(parts, INT4[0]), least=0.55, goal=0.70),
    Bar("decode step bf16, of copying", "share", lambda parts: _of_copy(parts, "bf16"), least=0.80),
    Bar("prefill bf16, of its limit", "share", lambda parts: _share(parts, "bf16", "prefill"), least=0.55),
    Bar("prefill w4a16, of its limit", "share", lambda parts: _share(parts, INT4[0], "prefill"), least=0.55),
    Bar("prefill w4a8, of its limit", "share", lambda parts: _share(parts, INT4[1], "prefill"), least=0.55),
    Bar("demo tokens that differ above the noise", "frames", _differ, most=0),
    Bar("kernels further off than twice plain bf16", "kernels", _failing, most=0),
    Bar("allocator peak int4", "bytes", lambda parts: float(parts["memory: int4"]["peak_bytes"]), most=4.6e9),
    Bar("allocator peak int8", "bytes", lambda parts: float(parts["memory: int8"]["peak_bytes"]), most=7.8e9),
    Bar(
        "load peak int4 over its weights",
        "bytes",
        lambda parts: float(parts["memory: int4"]["load_peak_bytes"] - parts["memory: int4"]["weights_bytes"]),
        most=300e6,
    ),
)


def judge(parts: Parts, dry: bool = False) -> list[dict[str, Any]]:
    """The table. `named` says which form a row's best was. What a dry run shows meets and misses nothing."""
    rows = [bar.judge(parts) for bar in BARS]
    if dry:
        rows = [{**row, "verdict": "dry run"} for row in rows]
    for row, sides in ((rows[2], INT8), (rows[3], INT4)):
        if row["value"] is not None:
            row["named"] = _best(parts, sides)
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for a terminal."""
    return [
        f"{row['verdict']:>12}  {row['what']}: {_number(row['value'])} {row['unit']}"
        f" ({', '.join(f'{name} {_number(bar)}' for name, bar in row['bar'].items())})"
        + (f", {row['named']}" if "named" in row else "")
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
