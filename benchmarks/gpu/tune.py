"""Which tile suits this GPU: every product of the 7B policy with every tile that could, compiled, checked and timed.

    python -m benchmarks.gpu.tune [--kind w4a16_gemv ..] [--out FILE] [--budget SECONDS] [--dry-run]

Compiles in as many processes as there are cores, each of which also launches what it compiled, so that a tile which
breaks the device breaks only its own. Then times one shape after the other with a cold L2, what pays most first, and
saves after each. `edge_vla.runtime.gpu.kernels.tiles.TUNED` takes the winners. A dry run goes through a few tiles of a
toy policy in Triton's interpreter and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Final

import torch

from benchmarks.gpu.clock import device_ms
from benchmarks.gpu.kernel_checks.check import RandomInputs
from benchmarks.gpu.tune_shapes import KINDS, Shape, Work, candidates, shapes, work
from edge_vla.bench.provenance import Provenance, provenance
from edge_vla.files import write_whole
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile, gemm_tile, gemv_tile, size_class
from edge_vla.runtime.gpu.kernels.weights import summed
from edge_vla.spec import OPENVLA_7B, TINY

log: Final = logging.getLogger("benchmarks.gpu")
PREFILL: Final = 288  # rows: 256 patches and a prompt of 32 tokens
BEST: Final = 5
REPEATS: Final = 12
COMPILING_SHARE: Final = 0.6  # of the budget, at most
FAR: Final = 2.0**-6  # of the largest value: four roundings of bfloat16


@dataclass(frozen=True)
class Timed:
    """`time_us` is None where the tile failed: `failed` says how."""

    tile: Tile
    time_us: float | None = None
    gb_s: float | None = None
    tflop_s: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class ShapeRow:
    """`default` is the engine's tile. `best` of those that give the right product, fastest first."""

    shape: Shape
    size_class: tuple[int, int]
    default: Timed
    best: list[Timed]
    tried: int
    failed: list[Timed]


@dataclass
class TuneResult:
    """`event_us` is what two events around nothing take; it is subtracted. `left_out`: shapes that had no time."""

    provenance: Provenance
    chip: Chip
    dry_run: bool
    event_us: float
    compiling_s: float | None = None
    rows: list[ShapeRow] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    kind: str = "gpu-tiles"
    version: int = 1


@dataclass(frozen=True)
class Plan:
    """What a run goes through: shapes on a device, all tiles or the first `most` of each, timed `repeats` times."""

    device: torch.device
    shapes: list[Shape]
    group: int
    most: int | None
    repeats: int

    def tiles(self, shape: Shape) -> list[Tile]:
        return candidates(shape, Chip.of(self.device))[: self.most]

    def prepared(self, shape: Shape) -> Work:
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float16  # Triton's interpreter lacks the other
        return work(shape, RandomInputs.seeded(0, self.device, dtype), self.group)


def plan(kinds: Sequence[str], dry: bool) -> Plan:
    chosen = tuple(kind for kind in KINDS if not kinds or kind in kinds)
    if dry:
        first = {shape.kind: shape for shape in reversed(list(shapes(TINY, 20, chosen)))}
        return Plan(torch.device("cpu"), list(first.values())[::-1], 32, 2, 1)
    return Plan(torch.device("cuda", 0), list(shapes(OPENVLA_7B, PREFILL, chosen)), 128, None, REPEATS)


def key(shape: Shape, tile: Tile) -> str:
    return json.dumps([asdict(shape), asdict(tile)])


def compile_share(made: Plan, worker: int, workers: int, out: IO[str]) -> None:
    """Launch this worker's tiles once: a line before each, and one after with why it failed, or null."""
    for shape in made.shapes:
        mine = [tile for tile in made.tiles(shape) if _owner(shape, tile, workers) == worker]
        prepared = made.prepared(shape) if mine else None
        for tile in mine:
            assert prepared is not None
            print(json.dumps({"start": key(shape, tile)}), file=out, flush=True)
            failed = attempt(partial(prepared.launch, tile))
            print(json.dumps({"end": key(shape, tile), "failed": failed}), file=out, flush=True)
            if failed is not None and attempt(lambda: None) is not None:
                return  # the context is lost, and would fail every tile after this one


def _owner(shape: Shape, tile: Tile, workers: int) -> int:
    """Tiles that compile alike go to the same worker."""
    return zlib.crc32(f"{shape.kernel} {shape.m} {replace(tile, splits=0)}".encode()) % workers


def attempt(launch: Callable[[], object]) -> str | None:
    """Why this failed. Compilers and drivers raise anything."""
    try:
        launch()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1][:200]}"
    return None


def compiled(kinds: Sequence[str], dry: bool, ends: float) -> dict[str, str | None]:
    """Tiles that were launched, with why they failed. What has not been launched in time is missing."""
    workers = 1 if dry else max(1, os.cpu_count() or 1)
    outcomes = dict[str, str | None]()
    with tempfile.TemporaryDirectory(prefix="edge-vla-tune-") as folder:
        files = [Path(folder, f"{worker}.jsonl") for worker in range(workers)]
        common = [sys.executable, "-m", "benchmarks.gpu.tune", *(word for kind in kinds for word in ("--kind", kind))]
        common += ["--dry-run"] if dry else []
        running = list[subprocess.Popen[bytes]]()
        for worker, path in enumerate(files):
            with path.open("wb") as file:
                command = [*common, "--worker", str(worker), str(workers)]
                running.append(subprocess.Popen(command, stdout=file, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        for process in running:
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        late = time.monotonic() >= ends
        for path in files:
            outcomes |= read_outcomes(path.read_text(encoding="utf-8").splitlines(), late)
    return outcomes


def read_outcomes(lines: Iterable[str], late: bool) -> dict[str, str | None]:
    """A tile that was started and did not end broke its process, unless the process was stopped because it was late."""
    outcomes = dict[str, str | None]()
    for line in lines:
        entry = json.loads(line)
        if "start" in entry:
            outcomes[entry["start"]] = "its process ended"
        else:
            outcomes[entry["end"]] = entry["failed"]
    if late and outcomes and list(outcomes.values())[-1] == "its process ended":
        outcomes.popitem()
    return outcomes


def timed(prepared: Work, tile: Tile | None, named: Tile, truth: torch.Tensor, event_us: float, repeats: int) -> Timed:
    """`tile` None lets the engine choose; `named` is what is written down."""
    made = list[torch.Tensor]()
    failed = attempt(lambda: made.append(prepared.launch(tile)))
    if failed is not None:
        return Timed(named, failed=failed)
    ours = summed(made[0], truth.dtype).float()
    if not float((ours - truth.float()).abs().max()) <= FAR * float(truth.float().abs().max()):  # also where NaN
        return Timed(named, failed="a wrong product")
    device = truth.device
    us = max(1e-3, device_ms(lambda: prepared.launch(tile), device, repeats) * 1e3 - event_us)
    tflop_s = round(prepared.operations / us / 1e6, 1) if prepared.operations else None
    return Timed(named, round(us, 2), round(prepared.moved_bytes / us / 1e3, 1), tflop_s)


def row(made: Plan, shape: Shape, outcomes: dict[str, str | None], event_us: float, ends: float) -> ShapeRow:
    chip = Chip.of(made.device)
    prepared = made.prepared(shape)
    truth = prepared.truth()
    engines = (
        gemv_tile(chip, shape.format, shape.n, shape.k)
        if shape.kernel.endswith("gemv")
        else gemm_tile(chip, shape.format, shape.n, shape.k, shape.reader)
    )
    default = timed(prepared, None, engines, truth, event_us, made.repeats)
    results = list[Timed]()
    for tile in made.tiles(shape):
        name = key(shape, tile)
        if outcomes.get(name) is not None:
            results.append(Timed(tile, failed=outcomes[name]))
        elif name in outcomes and time.monotonic() < ends:
            results.append(timed(prepared, tile, tile, truth, event_us, made.repeats))
    right = sorted((one for one in results if one.time_us is not None), key=lambda one: one.time_us or 0.0)
    failed = [one for one in results if one.failed is not None]
    return ShapeRow(shape, size_class(shape.n, shape.k), default, right[:BEST], len(results), failed)


def tune(kinds: Sequence[str], dry: bool, path: Path, budget_s: float) -> TuneResult:
    began = time.monotonic()
    made, ends = plan(kinds, dry), began + budget_s
    with torch.inference_mode():
        event_us = 0.0 if dry else device_ms(lambda: None, made.device, REPEATS) * 1e3
        result = TuneResult(provenance(), Chip.of(made.device), dry, round(event_us, 2))
        outcomes = compiled(kinds, dry, began + COMPILING_SHARE * budget_s)
        result.compiling_s = round(time.monotonic() - began, 1)
        log.info("%d tiles launched in %.0f s", len(outcomes), result.compiling_s)
        for shape in made.shapes:
            if time.monotonic() >= ends:
                result.left_out.append(f"{shape.kind} {shape.name}")
                continue
            result.rows.append(row(made, shape, outcomes, event_us, ends))
            write_whole(path, json.dumps(asdict(result), indent=1) + "\n")
            for line in lines(result.rows[-1]):
                log.info("%s", line)
    write_whole(path, json.dumps(asdict(result), indent=1) + "\n")
    return result


def lines(one: ShapeRow) -> list[str]:
    """The default and the best, a line each."""
    shape = one.shape
    heading = f"{shape.kind} {shape.name} {shape.m}x{shape.n}x{shape.k}: {one.tried} tiles, {len(one.failed)} failed"
    return [heading, f"  default {_figures(one.default)}", *(f"          {_figures(tile)}" for tile in one.best)]


def _figures(one: Timed) -> str:
    tile = one.tile
    rows = f"{tile.block_m}x{tile.row_tiles}"
    said = f"n {tile.block_n} m {rows} k {tile.block_k} warps {tile.warps} stages {tile.stages} splits {tile.splits}"
    if one.time_us is None:
        return f"failed: {one.failed} ({said})"
    tflop_s = "" if one.tflop_s is None else f" {one.tflop_s:6.1f} TFLOP/s"
    return f"{one.time_us:7.2f} us {one.gb_s:7.1f} GB/s{tflop_s}  {said}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tune", description=__doc__)
    parser.add_argument("--kind", action="append", default=[], choices=KINDS, help="repeatable (default: all)")
    parser.add_argument("--out", type=Path, default=Path("bench-out/tiles.json"), help="JSON file")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds, compiling included")
    parser.add_argument("--dry-run", action="store_true", help="a toy policy in Triton's interpreter, on a CPU")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.gpu.tune", *sys.argv[1:]],
            {**os.environ, "TRITON_INTERPRET": "1"},
        )
    if options.worker:
        with torch.inference_mode():
            worker, workers = options.worker
            compile_share(plan(options.kind, options.dry_run), worker, workers, sys.stdout)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tune(options.kind, options.dry_run, options.out, options.budget)
    log.info("written: %s", options.out)


if __name__ == "__main__":
    main()
