"""What `make bench-gpu` writes: a dataclass for every part, and the one writer.

None means not measured. Times are milliseconds unless a name says seconds; GB and TFLOP are powers of ten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from edge_vla.bench.provenance import Provenance
from edge_vla.bench.result import SpeedRatio
from edge_vla.device.limits import Ceilings
from edge_vla.device.sensors import GpuMemoryPeaks
from edge_vla.files import write_whole
from edge_vla.runtime.gpu.device import Backend
from edge_vla.typed_json import from_json, parse

VERSION: Final = 1
T = TypeVar("T")


@dataclass
class Part(Generic[T]):
    """`measured`, or why not in `failed`; neither before the part was started."""

    measured: T | None = None
    failed: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    held_bytes: int


@dataclass(frozen=True)
class GpuDevice:
    """The device as the run found it, with the other processes on it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    other_processes: list[GpuProcess]
    cuda: str | None


@dataclass(frozen=True)
class Compilation:
    """Every kernel launched once: how many could be, and why the others could not."""

    launched: int
    failed: dict[str, str]


@dataclass(frozen=True)
class KernelRow:
    """One kernel at one shape. `error` is None where the output was not finite."""

    name: str
    kernel: str
    passed: bool
    failed: str | None = None
    error: float | None = None
    allowed: float | None = None
    bits_equal_torch: bool | None = None
    time_ms: float | None = None
    gb_s: float | None = None
    tflop_s: float | None = None


@dataclass(frozen=True)
class KernelTable:
    backend: str
    rows: list[KernelRow]

    @property
    def failing(self) -> int:
        return sum(not row.passed for row in self.rows)


@dataclass(frozen=True)
class Memory:
    """Bytes. Allocator peaks are torch's and None on a CPU; `nvml` counts everything the driver counts."""

    parts_bytes: dict[str, int]  # on the device, but for names with "(host)"
    weights_bytes: int
    load_peak_bytes: int | None
    peak_bytes: int | None
    graphs_and_scratch_bytes: int | None
    load_s: float
    staging_bytes: int
    staged_bytes: int
    host_before_bytes: int
    host_peak_bytes: int
    empty_context_bytes: int | None
    nvml: GpuMemoryPeaks | None


@dataclass(frozen=True)
class Times:
    """Timed actions of one system. `samples_ms` are blocks in the order run."""

    actions: int
    p50_ms: float
    p50_interval_ms: tuple[float, float]
    best_ms: float
    worst_ms: float
    passes_mean: float | None  # of the decoder after the prefill, where drafts make it vary
    samples_ms: list[list[float]]


@dataclass
class SystemRow:
    """One system under test: `times`, or why not in `failed`."""

    name: str
    about: str | None = None
    ours: bool = False
    first_action_ms: float | None = None
    tokens: tuple[int, ...] | None = None
    times: Times | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Comparison:
    """p50 of `other` over p50 of `system`, from blocks in turns."""

    system: str
    other: str
    faster: SpeedRatio


@dataclass(frozen=True)
class LatencyTable:
    prompt_rows: int
    dims: int
    systems: list[SystemRow]
    comparisons: list[Comparison]
    versions: dict[str, str]


@dataclass(frozen=True)
class StageRow:
    """A stage of an action against the device's ceilings. `share` is the limit over the time: 1 cannot be beaten."""

    stage: str
    time_ms: float
    gb_s: float
    tflop_s: float
    limit_ms: float
    share: float
    bound_by: Literal["bytes", "arithmetic"]


@dataclass(frozen=True)
class StageTable:
    """`piece_ms` are graphs replayed alone; `rows` is None where the ceilings were not measured."""

    kernels: dict[str, str]
    piece_ms: dict[str, float]
    rows: list[StageRow] | None


@dataclass(frozen=True)
class StepsRow:
    """A decode step and a whole action both ways, in turns on one engine; `chosen` is what loading settled on.

    `equal` of `pictures` actions have the same tokens both ways, which sum in different orders.
    """

    configuration: str
    failed: str | None = None
    chosen: str | None = None
    one_launch_ms: float | None = None
    chain_ms: float | None = None
    action_one_launch_ms: float | None = None
    action_chain_ms: float | None = None
    pictures: int | None = None
    equal: int | None = None


@dataclass(frozen=True)
class StepsTable:
    rows: list[StepsRow]


@dataclass(frozen=True)
class KernelTime:
    """One kernel over an action, by the device's own record."""

    name: str
    launches: float
    total_us: float


@dataclass(frozen=True)
class Trace:
    """One action's kernels inside the graph, the mean of several. `gaps_us` is the time in which no kernel ran."""

    span_us: float
    busy_us: float
    gaps_us: float
    launches: float
    kernels: list[KernelTime]


@dataclass(frozen=True)
class DemoRow:
    """Frames of the demo policy whose tokens equal the torch reference's, and first flips above the rounding noise."""

    configuration: str
    failed: str | None = None
    equal_frames: int | None = None
    high_margin_flips: int | None = None


@dataclass(frozen=True)
class DemoTokens:
    frames: int
    rounding_noise_p99: float  # logits
    rows: list[DemoRow]


@dataclass(frozen=True)
class AgreementRow:
    """Shares of tokens, with random weights of full size."""

    configuration: str
    failed: str | None = None
    equal_to_bf16: float | None = None
    first_token_equal_to_bf16: float | None = None
    equal_to_reference: float | None = None


@dataclass(frozen=True)
class Agreement:
    pictures: int
    rows: list[AgreementRow]


@dataclass(frozen=True)
class TargetRow:
    """A figure against its target. `system` is the one it was taken from, where that is chosen by the figures."""

    what: str
    unit: str
    at_most: float | None
    at_least: float | None
    goal: float | None
    value: float | None
    verdict: Literal["met", "missed", "not measured", "dry run"]
    system: str | None = None


@dataclass
class GpuResult:
    """Filled part by part. `device_lost` is the error after which nothing more was started."""

    dry_run: bool
    model: str
    backend: Backend
    provenance: Provenance
    device: GpuDevice | None
    memory: dict[str, Part[Memory]]  # by bits of the decoder
    latency: dict[str, Part[LatencyTable]]  # by the systems that took turns
    stages: dict[str, Part[StageTable]]  # by configuration
    traces: dict[str, Part[Trace]]  # by configuration
    ceilings: Part[Ceilings] = field(default_factory=Part)
    compilation: Part[Compilation] = field(default_factory=Part)
    kernels: Part[KernelTable] = field(default_factory=Part)
    decode_steps: Part[StepsTable] = field(default_factory=Part)
    demo_tokens: Part[DemoTokens] = field(default_factory=Part)
    agreement: Part[Agreement] = field(default_factory=Part)
    targets: list[TargetRow] = field(default_factory=list)
    device_lost: str | None = None
    kind: str = "gpu"
    version: int = VERSION

    def latency_tables(self) -> Iterator[LatencyTable]:
        yield from (part.measured for part in self.latency.values() if part.measured is not None)


def read(path: Path) -> GpuResult:
    """What `write` wrote, to add to it."""
    return from_json(GpuResult, parse(path.read_bytes()))


def write(result: GpuResult, path: Path) -> None:
    """The result as JSON; numbers that are not finite become null."""
    write_whole(path, json.dumps(_finite(asdict(result)), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
