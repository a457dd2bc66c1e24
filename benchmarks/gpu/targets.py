"""The targets for an H200, and what a run says of each: met, missed or not measured.

Knows the run's result; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.gpu.configurations import BF16, DRAFTED, W4A8, W4A16, W8A8, W8A16, Configuration
from benchmarks.gpu.peers import EAGER, NF4
from benchmarks.gpu.result import GpuResult, Memory, StageRow, TargetRow

Value = Callable[[GpuResult], "float | None"]


@dataclass(frozen=True)
class Target:
    """`value` reads the result, None where it was not measured. `fastest_of` are configurations to choose one from."""

    what: str
    unit: str
    value: Value
    at_most: float | None = None
    at_least: float | None = None
    goal: float | None = None
    fastest_of: tuple[Configuration, ...] = ()

    def evaluate(self, result: GpuResult) -> TargetRow:
        value = self.value(result)
        verdict: Literal["met", "missed", "not measured", "dry run"] = "missed"
        if result.dry_run:
            verdict = "dry run"
        elif value is None:
            verdict = "not measured"
        elif (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least):
            verdict = "met"
        system = fastest(result, self.fastest_of) if self.fastest_of else None
        return TargetRow(self.what, self.unit, self.at_most, self.at_least, self.goal, value, verdict, system)


def p50_ms(result: GpuResult, system: str | None) -> float | None:
    """In the first table that timed it."""
    rows = (row for table in result.latency_tables() for row in table.systems if row.name == system)
    return next((row.times.p50_ms for row in rows if row.times is not None), None)


def fastest(result: GpuResult, configurations: Sequence[Configuration]) -> str | None:
    """The fastest of these that was timed."""
    timed = {one.name: time for one in configurations if (time := p50_ms(result, one.name)) is not None}
    return min(timed, key=timed.__getitem__, default=None)


def times_faster(result: GpuResult, ours: str | None, other: str) -> float | None:
    """From the table in which the two took turns."""
    found = (one for table in result.latency_tables() for one in table.comparisons)
    return next((one.faster.ratio for one in found if (one.system, one.other) == (ours, other)), None)


def stage(result: GpuResult, configuration: Configuration, name: str) -> StageRow | None:
    table = result.stages[configuration.name].measured
    rows = [] if table is None or table.rows is None else table.rows
    return next((row for row in rows if row.stage == name), None)


def prefill_share(configuration: Configuration) -> Value:
    def share(result: GpuResult) -> float | None:
        row = stage(result, configuration, "prefill")
        return None if row is None else row.share

    return share


def share_of_copy(configuration: Configuration) -> Value:
    """The rate at which a decode step reads, over the rate of a copy."""

    def share(result: GpuResult) -> float | None:
        row, ceilings = stage(result, configuration, "one step"), result.ceilings.measured
        return None if row is None or ceilings is None else row.gb_s * 1e9 / ceilings.read_bytes_per_s

    return share


def high_margin_flips(result: GpuResult) -> float | None:
    """None unless every configuration was compared."""
    demo = result.demo_tokens.measured
    counts = [] if demo is None else [row.high_margin_flips for row in demo.rows]
    known = [count for count in counts if count is not None]
    return float(sum(known)) if known and len(known) == len(counts) else None


def failing_kernels(result: GpuResult) -> float | None:
    return None if result.kernels.measured is None else float(result.kernels.measured.failing)


def of_memory(bits: str, value: Callable[[Memory], int | None]) -> Value:
    def read(result: GpuResult) -> float | None:
        memory = result.memory[bits].measured
        return None if memory is None else value(memory)

    return read


def _load_peak_over_weights(memory: Memory) -> int | None:
    return None if memory.load_peak_bytes is None else memory.load_peak_bytes - memory.weights_bytes


INT4, INT8 = (W4A16, W4A8), (W8A16, W8A8)
TARGETS: Final = (
    Target("bf16", "ms", lambda result: p50_ms(result, BF16.name), at_most=32),
    Target("bf16 against eager HF", "times", lambda result: times_faster(result, BF16.name, EAGER), at_least=4),
    Target(
        "int8, faster prefill", "ms", lambda result: p50_ms(result, fastest(result, INT8)), at_most=21, fastest_of=INT8
    ),
    Target(
        "int4, faster prefill", "ms", lambda result: p50_ms(result, fastest(result, INT4)), at_most=15, fastest_of=INT4
    ),
    Target(
        "int4 against our bf16",
        "times",
        lambda result: times_faster(result, fastest(result, INT4), BF16.name),
        at_least=2,
        fastest_of=INT4,
    ),
    Target("w4a8 against bitsandbytes NF4", "times", lambda result: times_faster(result, W4A8.name, NF4), at_least=3),
    Target("w4a8, drafts", "ms", lambda result: p50_ms(result, DRAFTED), at_most=9),
    Target("decode step int4, of a copy's rate", "share", share_of_copy(W4A16), at_least=0.55, goal=0.70),
    Target("decode step bf16, of a copy's rate", "share", share_of_copy(BF16), at_least=0.80),
    Target("prefill bf16, of its limit", "share", prefill_share(BF16), at_least=0.55),
    Target("prefill w4a16, of its limit", "share", prefill_share(W4A16), at_least=0.55),
    Target("prefill w4a8, of its limit", "share", prefill_share(W4A8), at_least=0.55),
    Target("demo policy: high-margin flips", "frames", high_margin_flips, at_most=0),
    Target("kernels with more than twice plain bf16's error", "kernels", failing_kernels, at_most=0),
    Target("allocator peak int4", "bytes", of_memory("4", lambda memory: memory.peak_bytes), at_most=4.6e9),
    Target("allocator peak int8", "bytes", of_memory("8", lambda memory: memory.peak_bytes), at_most=7.8e9),
    Target("load peak int4 over its weights", "bytes", of_memory("4", _load_peak_over_weights), at_most=300e6),
)


def evaluate(result: GpuResult) -> list[TargetRow]:
    return [target.evaluate(result) for target in TARGETS]


def lines(rows: Sequence[TargetRow]) -> list[str]:
    """The table for a terminal."""
    return [
        f"{row.verdict:>12}  {row.what}: {_number(row.value)} {row.unit} ({_limits(row)})"
        + (f", {row.system}" if row.system is not None else "")
        for row in rows
    ]


def _limits(row: TargetRow) -> str:
    limits = {"at most": row.at_most, "at least": row.at_least, "goal": row.goal}
    return ", ".join(f"{name} {_number(limit)}" for name, limit in limits.items() if limit is not None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
