"""python -m benchmarks.gpu.model [--run FILE] [--of-run FILE] [--table FILE] [--out FILE]: what an action should take.

Fits and tests the model on a committed run with the counted table of the engine that ran, and predicts four devices
from the table of the engine as it is. Takes seconds, and no GPU.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.gpu.counted.__main__ import TABLE, read_table
from benchmarks.gpu.counted.result import CountedResult
from benchmarks.gpu.model.devices import Device, h200, others
from benchmarks.gpu.model.fit import alone, kernel_errors, launch_us, measured_stages, stage_errors, timed
from benchmarks.gpu.model.kernel import WAIT, Constants
from benchmarks.gpu.model.predict import bars, expected
from benchmarks.gpu.model.result import DeviceRates, ModelResult
from benchmarks.gpu.model.stages import stages
from benchmarks.gpu.result import GpuResult, read
from edge_vla.errors import UsageError

log: Final = logging.getLogger("benchmarks.gpu")
RESULTS: Final = study.ROOT / "benchmarks" / "results"
RUN: Final = RESULTS / "2026-11-26-nvidia-h200-6552a05c3217.json"
OF_RUN: Final = RESULTS / "gpu-counted-of-run.json"  # H200 rows and launches of the engine that ran
OUT: Final = RESULTS / "gpu-model.json"


def model(table: CountedResult, of_run: CountedResult, run: GpuResult, name: str) -> ModelResult:
    """`of_run`: the table of the engine that ran. UsageError where the run lacks ceilings or kernels."""
    ceilings = run.ceilings.measured
    if ceilings is None:
        raise UsageError(f"{name} measured no ceilings: run python -m benchmarks.gpu --only ceilings")
    card = h200(ceilings)
    kernels, found = timed(of_run, run, card), list(stages(table, card.chip))
    measured = measured_stages(list(stages(of_run, card.chip)), run)
    start, unhidden = alone(kernels)
    constants = Constants(launch_us(measured, card, unhidden), unhidden)
    errors = list(stage_errors(measured, card, unhidden))
    devices = (card, *others(ceilings))
    predicted = [one for device in devices for one in expected(table, device, card, constants, errors)]
    return ModelResult(
        run=name,
        wait_cycles=WAIT,
        start_us=start,
        unhidden=unhidden,
        launch_us=constants.launch_us,
        unpriced=sorted({kernel for stage in found for kernel in stage.unpriced}),
        kernels=list(kernel_errors(kernels)),
        stages=errors,
        devices=[_rates(device, constants.on(device, card)) for device in devices],
        expected=predicted,
        bars=list(bars(predicted)),
    )


def _rates(device: Device, constants: Constants) -> DeviceRates:
    return DeviceRates(
        device.name,
        device.chip,
        device.clock,
        device.sm_count,
        constants.launch_us,
        device.copy_bytes_per_s,
        device.bf16,
        device.int8,
        device.source,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.model", description=__doc__)
    parser.add_argument("--run", type=Path, default=RUN, help="a result of benchmarks.gpu on an H200")
    parser.add_argument("--of-run", type=Path, default=OF_RUN, help="the counted table of the engine that ran")
    parser.add_argument("--table", type=Path, default=TABLE, help="the counted table")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args()
    result = model(read_table(options.table), read_table(options.of_run), read(options.run), options.run.name)
    for one in result.stages:
        log.info("%s, %s: %.2f ms, expected %.2f (%+.0f %%)", one.configuration, one.stage, one.measured_ms,
                 one.expected_ms, 100 * one.error)  # fmt: skip
    for bar in result.bars:
        log.info("%s, %s: %.1f ms [%.1f, %.1f], bar %g: %s", bar.device, bar.configuration, bar.expected.ms,
                 bar.expected.lowest_ms, bar.expected.highest_ms, bar.at_most_ms, bar.verdict)  # fmt: skip
    study.write_result(options.out, result)
    log.info("written: %s", options.out)


if __name__ == "__main__":
    study.run(main)
