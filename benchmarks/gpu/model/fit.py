"""The constants that the H200's runs give, and the errors of what they were not fitted on.

`start` and `unhidden` come from kernels timed alone; `start` holds what the events of such a timing cost and is used
for nothing else. `launch` comes from stages, and a stage is tested with the launch of the other configurations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.counted.result import CountedResult
from benchmarks.gpu.model.devices import Device
from benchmarks.gpu.model.kernel import Constants, Work, work
from benchmarks.gpu.model.result import ACTION, KernelErrors, StageError
from benchmarks.gpu.model.stages import Stage, multiplied_rows
from benchmarks.gpu.result import GpuResult
from edge_vla.errors import UsageError

FIRST_LAUNCH_US: Final = 2.0  # of the rejected model
STARTS: Final = np.arange(1.0, 10.0, 0.01)  # microseconds
SHARES: Final = np.arange(0.0, 1.001, 0.01)
LAUNCHES: Final = np.arange(0.0, 10.0, 0.01)  # microseconds
MEASURED_AS: Final = {"step": "one step"}  # a stage's name in the run, where it differs
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timed:
    """One kernel timed alone, and its work by the model."""

    name: str
    kernel: str
    measured_us: float
    work: Work


def timed(table: CountedResult, run: GpuResult, device: Device) -> list[Timed]:
    """The run's kernels that have a row in the table; UsageError where none has."""
    rows = {(row.case, row.kernel): row for row in table.kernels if row.chip == device.chip}
    measured = run.kernels.measured
    found = [
        Timed(one.name, one.kernel, 1e3 * one.time_ms, work(row, multiplied_rows(one.name), device))
        for one in (measured.rows if measured is not None else ())
        if one.time_ms and (row := rows.get((one.name, one.kernel)))
    ]
    if not found:
        raise UsageError("no kernel of the run is in the counted table: make both for the same commit")
    return found


def alone(kernels: Sequence[Timed]) -> tuple[float, float]:
    """(start in microseconds, share that is not hidden) with the least squared error of the logarithm."""
    measured = np.array([one.measured_us for one in kernels])

    def error(share: float) -> tuple[float, float]:
        worked = np.array([one.work.us(share) for one in kernels])
        ratios: Floats = np.log((STARTS[:, None] + worked) / measured)
        squares = np.square(ratios).sum(axis=1)
        best = int(squares.argmin())
        return float(squares[best]), float(STARTS[best])

    (_, start), share = min((error(float(share)), float(share)) for share in SHARES)
    return start, share


def kernel_errors(kernels: Sequence[Timed]) -> Iterator[KernelErrors]:
    """Each kernel's cases by the constants of all other kernels."""
    for name in dict.fromkeys(one.kernel for one in kernels):
        start, share = alone([one for one in kernels if one.kernel != name])
        own = [one for one in kernels if one.kernel == name]
        errors = [(start + one.work.us(share)) / one.measured_us - 1 for one in own]
        yield KernelErrors(name, len(errors), min(errors), max(errors), sum(map(abs, errors)) / len(errors))


@dataclass(frozen=True, slots=True)
class Measured:
    """A stage of the model, and its milliseconds in the run."""

    stage: Stage
    ms: float


def measured_stages(found: Sequence[Stage], run: GpuResult) -> list[Measured]:
    """Those of the stages that the run has."""
    tables = {name: part.measured for name, part in run.stages.items()}
    rows = {(name, row.stage): row.time_ms for name, table in tables.items() if table for row in table.rows or ()}
    named = [(one, (one.configuration, MEASURED_AS.get(one.name, one.name))) for one in found]
    return [Measured(one, rows[name]) for one, name in named if name in rows]


def launch_us(stages: Sequence[Measured], device: Device, unhidden: float) -> float:
    """With the least squared error of the logarithm. A stage's time is linear in it, but for which tower is longer."""

    def squares(launch: float) -> float:
        constants = Constants(launch, unhidden)
        return float(sum(np.log(one.stage.ms(device, constants) / one.ms) ** 2 for one in stages))

    return _least(squares, LAUNCHES)


def _least(of: Callable[[float], float], values: Floats) -> float:
    """By halving the interval: `of` has one minimum."""
    low, high = 0, len(values) - 1
    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        low, high = (low, right) if of(float(values[left])) <= of(float(values[right])) else (left, high)
    return float(min((float(values[at]) for at in range(low, high + 1)), key=of))


def stage_errors(stages: Sequence[Measured], device: Device, unhidden: float) -> Iterator[StageError]:
    """Each configuration by the launch of the others; the action is the sum of its stages, and so is what it took."""
    for name in dict.fromkeys(one.stage.configuration for one in stages):
        launch = launch_us([one for one in stages if one.stage.configuration != name], device, unhidden)
        own = [one for one in stages if one.stage.configuration == name]
        constants = Constants(launch, unhidden)
        found = [
            StageError(name, one.stage.name, one.ms, one.stage.ms(device, constants),
                       one.stage.roofline_ms(device, FIRST_LAUNCH_US))
            for one in own
        ]  # fmt: skip
        yield from found
        times = [one.stage.times for one in own]
        sums = [
            sum(count * value for count, value in zip(times, values, strict=True))
            for values in zip(*((one.measured_ms, one.expected_ms, one.roofline_ms) for one in found), strict=True)
        ]
        yield StageError(name, ACTION, *sums)
