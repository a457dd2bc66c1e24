"""The CPU studies' results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import markdown
from benchmarks.cpu.results import (
    EAGER,
    LLAMA_CPP,
    PACKED,
    Acceptance,
    CpuPeersResult,
    DraftsResult,
    EngineResult,
    SoakResult,
    StrategyResult,
    TargetAction,
    TargetsResult,
)
from benchmarks.markdown import number, share, table

MODES = {True: "bitwise exact", False: "draft in prefill"}


def engine_targets(result: EngineResult, threads: int | None) -> Iterator[str]:
    kernels = ", ".join(result.kernels.values())
    how = "alone" if len(result.systems) == 1 else "in turns"
    subject = f"{result.model}, {result.bits} bits, {kernels}, {threads} threads, {how}"
    yield from markdown.targets(subject, result.targets)


def engine(result: EngineResult, threads: int | None) -> Iterator[str]:
    yield from engine_targets(result, threads)
    yield ""
    columns = ["milliseconds, median", "prefill", "one step", "six rows at once", "decoder part", "whole action"]
    rows = [
        (one.name, one.median.prefill_ms, one.median.step_ms, one.median.verify_ms, one.decoder_ms, one.action_ms)
        for one in result.systems
    ]
    yield from table(columns, [(name, *(None if ms is None else f"{ms:.1f}" for ms in times)) for name, *times in rows])
    ours, eager = result.system(PACKED), result.system(EAGER)
    yield ""
    yield (
        f"{result.prompt_rows} rows of prompt. Measured on {ours.layers_measured if ours else 0} of {result.layers} "
        f"packed layers and {eager.layers_measured if eager else 0} eager ones, multiplied up."
    )


def peers(result: CpuPeersResult) -> Iterator[str]:
    """Decoders, each with llama.cpp's times as multiples of its own; then one product of each library."""
    others = [one for one in result.decoders if one.name.startswith(LLAMA_CPP)]
    columns = ["milliseconds, median", "prefill", "one step", f"prefill and {result.steps} steps"]
    columns += [f"times faster than {one.name}" for one in others]
    yield from table(
        columns,
        [
            (
                one.name,
                f"{one.prefill_ms:.0f}",
                f"{one.step_ms:.1f}",
                f"{one.decoder_ms:.0f}",
                *(f"{other.prefill_ms / one.prefill_ms:.2f}, {other.step_ms / one.step_ms:.2f}" for other in others),
            )
            for one in result.decoders
        ],
    )
    yield ""
    yield (
        f"int4, {result.model}, {result.prompt_rows} rows of prompt; {result.layers_measured} of {result.layers} "
        "layers, multiplied up. Times faster: at the prefill, at a step."
    )
    rows = sorted({one.rows for one in result.products})
    found = {(one.name, one.rows): one for one in result.products}
    if found:
        yield ""
        names = dict.fromkeys(one.name for one in result.products)
        yield from table(
            [f"milliseconds, {result.product}", *(f"{count} rows" for count in rows), "relative error"],
            [
                (
                    name,
                    *(f"{found[name, count].milliseconds:.2f}" for count in rows),
                    f"{found[name, rows[-1]].relative_error:.2g}",
                )
                for name in names
            ],
        )


def soak(result: SoakResult) -> Iterator[str]:
    kernels = ", ".join(f"{part}: {kernel}" for part, kernel in result.kernels.items())
    yield from markdown.targets(f"demo policy, {kernels}", result.targets)
    yield ""
    systems = [result.reference, result.artifact, result.session]
    rows = [
        (one.name, str(one.actions), *_spread(one.p50_ms, one.p99_ms), speedup)
        for one, speedup in [
            *((one, f"{result.speedup(one):.2f}") for one in systems),
            *((c, "") for c in result.controls),
        ]
    ]
    yield from table(["in turns, same frames", "actions", "p50", "p99", "p99/p50", "times faster than reference"], rows)
    yield ""
    yield (
        f"Alone, {result.alone.actions} actions: p50 {result.alone.p50_ms:.2f} ms, p99 {result.alone.p99_ms:.2f} ms; "
        f"{result.tensors_allocated_per_action:.1f} tensors allocated in each, "
        f"{result.bytes_kept_per_action:.0f} bytes kept."
    )


def _spread(p50_ms: float, p99_ms: float) -> tuple[str, str, str]:
    return f"{p50_ms:.2f} ms", f"{p99_ms:.2f} ms", f"{p99_ms / p50_ms:.2f}"


def drafts(result: DraftsResult) -> Iterator[str]:
    """Passes and differing tokens of each strategy in each mode; then how often first drafts were right; then times."""
    columns = [
        "draft strategy", "mode", "actions", "passes an action", "dimensions right", "at most one bin off",
        "tokens that differ",
    ]  # fmt: skip
    yield from table(columns, map(_strategy, result.strategies))
    exact = [(row.strategy, row.acceptance) for row in result.strategies if row.bitwise_exact and row.acceptance]
    if exact:
        yield ""
        dims = [f"dimension {i}" for i in range(len(exact[0][1].by_dimension))]
        columns = ["first draft right", "all", *dims, "reach", "carry", "whole action"]
        yield from table(columns, [(name, *_acceptance(found)) for name, found in exact])
    timed = [(row, row.cost) for row in result.strategies if row.cost]
    if timed:
        yield ""
        columns = ["draft strategy", "mode", "decoder ms", "decoder, times faster", "action, times faster"]
        rows = [
            (row.strategy, MODES[row.bitwise_exact], f"{cost.decoder_ms:.2f}", f"{cost.decoder_speedup:.2f}",
             f"{cost.action_speedup:.2f}") for row, cost in timed
        ]  # fmt: skip
        yield from table(columns, rows)


def _strategy(row: StrategyResult) -> list[str | None]:
    found = row.acceptance
    return [
        row.strategy,
        MODES[row.bitwise_exact],
        str(row.actions),
        number(row.passes_per_action),
        None if found is None else share(found.overall),
        None if found is None else f"{found.within_one_bin:.1%}",
        f"{row.different_tokens} in {row.different_actions} actions",
    ]


def _acceptance(found: Acceptance) -> Iterator[str | None]:
    for one in (found.overall, *found.by_dimension, found.reach, found.carry, found.whole_action):
        yield None if one is None else f"{one.mean:.1%}"


def by_target(result: TargetsResult) -> Iterator[str]:
    yield f"Products with weights of {result.n} x {result.k}, one thread, processor time."
    yield ""
    yield from table(
        ["kernel", "weights", "rows", "us", "share", "of"],
        [
            [row.kernel, row.format, str(row.rows), str(row.microseconds), f"{row.share:.2f}", row.limit]
            for row in result.shares
        ],
    )
    if result.actions:
        yield ""
        yield from table(
            ["kernel", "action, ms", "bf16 reference, ms", "eager, ms", "times reference", "times eager"],
            [[row.kernel, *(f"{value:.1f}" for value in _times(row))] for row in result.actions],
        )
    missed = [target for target in result.targets if not target.met]
    yield ""
    yield f"{len(result.targets) - len(missed)} of {len(result.targets)} targets met."


def _times(row: TargetAction) -> tuple[float, ...]:
    return row.action_ms, row.reference_ms, row.eager_ms, row.times_reference, row.times_eager
