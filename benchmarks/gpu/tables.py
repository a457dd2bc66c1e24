"""The GPU measurements as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.gpu.configurations import BF16, DRAFTED, W4A8, W8A8
from benchmarks.gpu.counted.result import CountedResult, KernelRow
from benchmarks.gpu.int4_as_int8 import Int4AsInt8Result
from benchmarks.gpu.model.result import Expected, ModelResult
from benchmarks.gpu.peers import EAGER, NF4
from benchmarks.gpu.result import (
    GpuResult,
    LatencyTable,
    Memory,
    StageTable,
    StepsRow,
    SystemRow,
    TargetRow,
    Trace,
)
from benchmarks.gpu.tune import ShapeRow, TuneResult
from benchmarks.markdown import table
from edge_vla.runtime.gpu.kernels.tiles import Tile

README_SYSTEMS = (W4A8.name, W8A8.name, BF16.name, DRAFTED, EAGER, NF4)
SHOWN_KERNELS = 8  # of a trace


def readme(results: Sequence[GpuResult]) -> str:
    """Our systems and their peers on one device, each as it was first measured, in a line."""
    device, shown = next((one.device.name for one in results if one.device), "GPU"), dict[str, str]()
    for found in (one for result in results for one in result.latency_tables()):
        for row in found.systems:
            if row.times is not None and row.name in README_SYSTEMS:
                shown.setdefault(row.name, f"{row.name} {row.times.p50_ms:.1f} ms")
    return f"The same shapes on an {device}, one action: {'; '.join(shown.values())}."


def chapter(result: GpuResult) -> Iterator[str]:
    yield from table(["target", "at most", "at least", "measured", "verdict"], map(_target, result.targets))
    for name, part in result.latency.items():
        if part.measured is not None:
            yield from ("", f"### {name}", "")
            yield from _latency(part.measured)
    stages = {name: part.measured for name, part in result.stages.items() if part.measured is not None}
    if stages:
        yield from ("", "### Stages, each replayed alone", "")
        yield from _stages(stages)
    if result.decode_steps.measured is not None:
        yield from ("", "### Decode steps: one launch beside a chain of kernels", "")
        rows = map(_steps, result.decode_steps.measured.rows)
        yield from table(["configuration", "step", "chain", "action", "chain", "equal tokens", "chosen"], rows)
    for bits, memory in result.memory.items():
        if memory.measured is not None:
            yield from ("", _memory(bits, memory.measured))
    for name, trace in result.traces.items():
        if trace.measured is not None:
            yield from ("", f"### Kernels of one action: {name}", "")
            yield from _trace(trace.measured)
    yield from _tokens(result)


def tiles(result: TuneResult) -> Iterator[str]:
    """The default tile against the fastest of each shape."""
    yield from table(["kernel", "rows x N x K", "default", "fastest", "tile"], map(_shape, result.rows))


def counted(result: CountedResult) -> Iterator[str]:
    """Launches of an action, and the products of one chip."""
    yield f"{result.compiler}, no device. Launches of one action:"
    yield ""
    yield from table(
        ["configuration", "stage", "times", "of our kernels", "of torch", "in all"],
        [
            (
                row.configuration,
                row.stage,
                str(row.times),
                str(sum(row.kernels.values())),
                str(row.torch),
                str(row.total),
            )
            for row in result.launches
        ],
    )
    yield from ("", "The products of a group of 128 on an H200's chip; the file has every kernel on every chip.", "")
    shown = [row for row in result.kernels if row.chip == "H200" and row.per_weight and "groups" not in row.case]
    yield from table(
        [
            "case",
            "programs",
            "for each SM",
            "room on an SM",
            "rows computed",
            "registers",
            "stack",
            "shared bytes",
            "instructions a weight",
        ],
        map(_counted, shown),
    )


def _counted(row: KernelRow) -> tuple[str, ...]:
    rows = "" if row.rows is None else f"{row.rows_computed} of {row.rows}"
    counts = (row.programs, row.per_sm, row.programs_per_sm, rows, row.registers, row.stack_bytes, row.shared_bytes)
    return f"{row.case} ({row.kernel})", *map(str, counts), f"{row.per_weight:.2f}"


def _target(row: TargetRow) -> tuple[str, ...]:
    bounds = ["" if bound is None else f"{bound:g}" for bound in (row.at_most, row.at_least)]
    value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
    return (f"{row.what}{f' ({row.system})' if row.system else ''}", *bounds, value, row.verdict)


def _latency(found: LatencyTable) -> Iterator[str]:
    rows = [_system(found, row) for row in found.systems]
    yield from table(["system", "p50", "95 % interval", "worst", "actions", "passes", "against eager bf16"], rows)


def _system(found: LatencyTable, row: SystemRow) -> tuple[str, ...]:
    if row.times is None:
        return (row.name, f"failed: {row.failed}", "", "", "", "", "")
    low, high = row.times.p50_interval_ms
    passes = "" if row.times.passes_mean is None else f"{row.times.passes_mean:.2f}"
    return (row.name, f"{row.times.p50_ms:.2f} ms", f"{low:.2f} to {high:.2f}", f"{row.times.worst_ms:.1f} ms",
            str(row.times.actions), passes, _faster(found, row))  # fmt: skip


def _faster(found: LatencyTable, row: SystemRow) -> str:
    ratios = [one.faster for one in found.comparisons if (one.system, one.other) == (row.name, EAGER)]
    if not ratios or ratios[0].low is None or ratios[0].high is None:
        return ""
    return f"{ratios[0].ratio:.1f} [{ratios[0].low:.1f}, {ratios[0].high:.1f}]"


def _stages(stages: dict[str, StageTable]) -> Iterator[str]:
    rows = [
        (name, row.stage, f"{row.time_ms:.2f} ms", f"{row.limit_ms:.2f} ms", f"{row.share:.2f}", row.bound_by)
        for name, found in stages.items()
        for row in found.rows or ()
    ]
    yield from table(["configuration", "stage", "time", "limit", "share", "bound by"], rows)


def _steps(row: StepsRow) -> tuple[str, ...]:
    if row.failed is not None:
        return row.configuration, f"failed: {row.failed}", "", "", "", "", ""
    times = row.one_launch_ms, row.chain_ms, row.action_one_launch_ms, row.action_chain_ms
    shown = ["" if time is None else f"{time:.2f} ms" for time in times]
    return row.configuration, *shown, f"{row.equal} of {row.pictures}", row.chosen or ""


def _memory(bits: str, found: Memory) -> str:
    peak = "" if found.peak_bytes is None else f"allocator peak {found.peak_bytes / 1e9:.3f} GB, "
    nvml = None if found.nvml is None else found.nvml.process_peak_bytes
    process = "" if nvml is None else f"{nvml / 1e9:.2f} GB by NVML, "
    weights = found.weights_bytes / 1e9
    return f"{bits}-bit decoder: {peak}{process}weights {weights:.3f} GB, loaded in {found.load_s:.1f} s."


def _trace(found: Trace) -> Iterator[str]:
    """Where launches overlap, a kernel's time includes its wait for the one in front."""
    shown = found.kernels[:SHOWN_KERNELS]
    rows = [(f"`{one.name[:48]}`", f"{one.launches:g}", f"{one.total_us / 1e3:.2f} ms") for one in shown]
    yield from table([f"{found.launches:g} launches in {found.span_us / 1e3:.2f} ms", "launches", "time"], rows)


def _tokens(result: GpuResult) -> Iterator[str]:
    demo, kernels = result.demo_tokens.measured, result.kernels.measured
    if demo is not None:
        rows = [(row.configuration, f"{row.equal_frames} of {demo.frames}", str(row.high_margin_flips))
                for row in demo.rows if row.failed is None]  # fmt: skip
        yield ""
        yield from table(["demo policy against the torch reference", "frames equal", "high-margin flips"], rows)
    if kernels is not None:
        yield from ("", f"{len(kernels.rows)} kernel checks against float64, {kernels.failing} failing.")


def _shape(row: ShapeRow) -> tuple[str, ...]:
    shape, best = row.shape, row.best[0] if row.best else None
    times = ["" if us is None else f"{us:.1f} us" for us in (row.default.time_us, best.time_us if best else None)]
    return (
        f"{shape.kind} {shape.name}",
        f"{shape.m} x {shape.n} x {shape.k}",
        *times,
        _tile(best.tile) if best else "",
    )


def _tile(tile: Tile) -> str:
    return (
        f"{tile.block_n} x {tile.block_m} x {tile.row_tiles}, K {tile.block_k}, {tile.warps} warps, "
        f"{tile.stages} stages, {tile.splits} splits"
    )


def modelled(result: ModelResult) -> Iterator[str]:
    """Expected against measured, and what is expected of other devices."""
    yield (
        f"Fitted on `{result.run}`: a launch of {result.launch_us:.2f} us on the H200's clock, and a share of "
        f"{result.unhidden:.2f} of the shorter of loads and work that the longer does not hide; an instruction waits "
        f"{result.wait_cycles:g} cycles for the one before. Each stage below is expected by constants that were fitted "
        "without its configuration. Roofline: the first model, which was rejected."
    )
    yield ""
    rows = [
        (f"{one.configuration}: {one.stage}", *(f"{ms:.2f} ms" for ms in (one.measured_ms, one.expected_ms)),
         _signed(one.error), _signed(one.roofline_error))
        for one in result.stages
    ]  # fmt: skip
    yield from table(["H200", "measured", "expected", "error", "roofline's error"], rows)
    yield ""
    kernels = [(one.kernel, str(one.cases), _signed(one.lowest), _signed(one.highest), f"{one.mean_absolute:.0%}")
               for one in result.kernels]  # fmt: skip
    columns = ["kernel timed alone, fitted without it", "cases", "lowest error", "highest", "mean absolute"]
    yield from table(columns, kernels)
    yield ""
    yield from table(
        ["expected, ms", "vision", "prefill", "step", "action"],
        [(f"{device}, {name}", *cells) for (device, name), cells in _by_device(result).items()],
    )
    yield ""
    verdicts = [
        (f"{one.device}, {one.configuration}", f"{one.at_most_ms:g} ms", _range(one.expected), one.verdict)
        for one in result.bars
    ]
    yield from table(["action", "at most", "expected, ms", "verdict"], verdicts)
    yield ""
    yield from (f"- {one.name}: {one.source}; a launch of {one.launch_us:.1f} us." for one in result.devices)
    if result.unpriced:
        yield f"- Counted as launches alone, having no row: {', '.join(result.unpriced)}, and torch's operators."


def _by_device(result: ModelResult) -> dict[tuple[str, str], list[str]]:
    found = dict[tuple[str, str], list[str]]()
    for one in result.expected:
        found.setdefault((one.device, one.configuration), []).append(_range(one))
    return found


def _range(one: Expected) -> str:
    digits = 1 if one.ms < 100 else 0
    return f"{one.ms:.{digits}f} ({one.lowest_ms:.{digits}f} to {one.highest_ms:.{digits}f})"


def _signed(share: float) -> str:
    return f"{share:+.0%}"


def rounded_weights(result: Int4AsInt8Result) -> Iterator[str]:
    """Errors of drawn weights, as shares of the weights."""
    yield f"Weights {result.outputs} x {result.inputs}, int4 to nearest in groups of {result.group}; root mean squares."
    yield ""
    rows = [
        (name, *(f"{share:.1%}" for share in (one.int4, one.int8_of_int4, one.both, one.worst_output)))
        for name, one in result.losses.items()
    ]
    yield from table(["weights", "int4", "int8 of int4", "both", "int8 of int4, worst output"], rows)
