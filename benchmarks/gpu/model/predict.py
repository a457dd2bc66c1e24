"""What the model expects of a device, with the range that its errors on the H200 leave open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from benchmarks.gpu.configurations import W4A8, W4A16, Configuration
from benchmarks.gpu.counted.result import CountedResult
from benchmarks.gpu.model.devices import Device
from benchmarks.gpu.model.kernel import Constants
from benchmarks.gpu.model.result import ACTION, Bar, Expected, StageError
from benchmarks.gpu.model.stages import stages

BARS: Final[Sequence[tuple[str, Configuration, float]]] = (  # milliseconds of an action
    ("H200", W4A8, 15.0),
    ("AGX Orin", W4A16, 260.0),
    ("AGX Orin", W4A8, 220.0),
)


def expected(
    table: CountedResult, device: Device, fitted_on: Device, constants: Constants, errors: Sequence[StageError]
) -> Iterator[Expected]:
    """Every stage, and each configuration's action.

    A device with the chip of the measured one gets the range of that stage's errors; another the range of all.
    """
    there = constants.on(device, fitted_on)
    sums = dict[str, float]()
    for stage in stages(table, device.chip):
        ms = stage.ms(device, there)
        sums[stage.configuration] = sums.get(stage.configuration, 0.0) + stage.times * ms
        yield _expected(device, fitted_on, stage.configuration, stage.name, ms, errors)
    for configuration, ms in sums.items():
        yield _expected(device, fitted_on, configuration, ACTION, ms, errors)


def _expected(
    device: Device, fitted_on: Device, configuration: str, stage: str, ms: float, errors: Sequence[StageError]
) -> Expected:
    alike = [one for one in errors if one.stage == stage or device.chip != fitted_on.chip]
    ratios = [one.measured_ms / one.expected_ms for one in alike]
    return Expected(device.name, configuration, stage, ms, ms * min(ratios), ms * max(ratios))


def bars(found: Sequence[Expected]) -> Iterator[Bar]:
    for device, configuration, at_most in BARS:
        one = next(o for o in found if (o.device, o.configuration, o.stage) == (device, configuration.name, ACTION))
        verdict: Literal["met", "missed", "open"] = "open"
        if one.highest_ms <= at_most:
            verdict = "met"
        elif one.lowest_ms > at_most:
            verdict = "missed"
        yield Bar(device, configuration.name, at_most, one, verdict)
