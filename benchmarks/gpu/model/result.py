"""What the model says: its constants, how wrong it was where it can be checked, and what it expects elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

ACTION: Final = "action"


@dataclass(frozen=True, slots=True)
class KernelErrors:
    """Of a kernel's cases timed alone, by constants fitted without it: expected over measured, less one."""

    kernel: str
    cases: int
    lowest: float
    highest: float
    mean_absolute: float


@dataclass(frozen=True, slots=True)
class StageError:
    """A stage that was measured, by constants fitted without its configuration; `roofline_ms` is the first model's."""

    configuration: str
    stage: str
    measured_ms: float
    expected_ms: float
    roofline_ms: float

    @property
    def error(self) -> float:
        return self.expected_ms / self.measured_ms - 1

    @property
    def roofline_error(self) -> float:
        return self.roofline_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Expected:
    """One stage on one device; the range is what the errors on the H200 leave open."""

    device: str
    configuration: str
    stage: str
    ms: float
    lowest_ms: float
    highest_ms: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the issue against what is expected; `open` where the range holds it."""

    device: str
    configuration: str
    at_most_ms: float
    expected: Expected
    verdict: Literal["met", "missed", "open"]


@dataclass(frozen=True, slots=True)
class DeviceRates:
    name: str
    kernels_of: str
    clock_hz: float
    sm_count: int
    launch_us: float
    copy_bytes_per_s: float
    bf16_per_s: float
    int8_per_s: float
    source: str


@dataclass(frozen=True)
class ModelResult:
    """`start_us` is of a kernel timed alone and enters no stage; `unpriced` kernels count as launches alone."""

    KIND: ClassVar[str] = "gpu-model"
    VERSION: ClassVar[int] = 1
    run: str  # the file that it was fitted on and tested with
    wait_cycles: float
    start_us: float
    unhidden: float
    launch_us: float
    unpriced: list[str]
    kernels: list[KernelErrors]
    stages: list[StageError]
    devices: list[DeviceRates]
    expected: list[Expected]
    bars: list[Bar]
