"""How fast and how large a system is. Milliseconds and bytes stand in the field names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from edge_vla.bench.result.agreement import Count
from edge_vla.device.limits import Limits
from edge_vla.device.sensors import Range

BACK_TO_BACK: Final = "back to back"  # the latency mode without pauses


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    queries: Count
    seconds: float
    stable: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    p50_ms: float
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Raw times in an npz file beside the result."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    ready_s: float
    first_ms: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A percentile that so few queries cannot carry is None, with the reason in `refused`."""

    mode: str
    queries: Count
    warm_up: WarmUp | None
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    refused: dict[str, str]
    max_ms: float
    mean_ms: float
    stdev_ms: float
    cov: float
    hz: float
    sustained_hz: float
    p50_interval_ms: tuple[float, float]
    stages: list[Stage]
    unattributed_ms: float
    deadline_ms: float | None
    deadline_misses: Count | None
    cold: ColdStart | None
    repeat_ratio: float | None  # time on one repeated frame over the time on changing frames
    samples: Samples | None = None


@dataclass(frozen=True, kw_only=True)
class SystemMemory:
    total_bytes: int
    available_at_start_bytes: int
    available_drop_bytes: int


@dataclass(frozen=True, kw_only=True)
class CudaMemory:
    """Peaks: of torch's allocator, of the process and of the device as NVML sees them; None where it does not."""

    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_start_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class WatcherCost:
    cpu_share: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    weights: dict[str, int]  # bytes by part
    load_peak_bytes: int | None
    loaded_bytes: int | None  # after load and a few hundred actions
    peak_bytes: int
    pss_peak_bytes: int | None
    cuda: CudaMemory | None
    system: SystemMemory
    samples: Count
    period_ms: float
    watcher: WatcherCost


@dataclass(frozen=True, kw_only=True)
class TimedTokens:
    """Timed queries whose tokens are not those that agreement was computed from."""

    queries: Count
    different: Count


@dataclass(frozen=True, kw_only=True)
class SpeedRatio:
    """This system's p50 over the candidate's, from interleaved blocks: above 1, the candidate is faster."""

    ratio: float
    low: float | None
    high: float | None
    blocks: Count


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules of an action by one sensor, all that it covers included, idle or not. No sum: one may contain another."""

    sensor: str  # and what it covers
    joules_per_action: float
    mean_w: float
    highest_w: float | None  # None from a counter of joules, which shows no peaks
    actions: Count
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """What lowered clocks while actions were timed; a count is None where the system has no counter."""

    gpu: list[str]
    cpu_events: Count | None
    over_current_events: Count | None
    temperatures_c: dict[str, Range]  # by zone; empty where none is visible


@dataclass(frozen=True, kw_only=True)
class PowerDraw:
    """Of the blocks timed back to back. `withheld` says why there is no figure; there is never a zero instead."""

    energy: list[Energy]
    withheld: str | None
    throttling: Throttling


@dataclass(kw_only=True)
class Performance:
    """Latency by mode, memory and what ran; filled while the run goes on."""

    latency: dict[str, Latency] = field(default_factory=dict)
    memory: Memory | None = None
    power: PowerDraw | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    timed_tokens: TimedTokens | None = None
    ratio_to: dict[str, SpeedRatio] = field(default_factory=dict)  # by candidate

    @property
    def back_to_back(self) -> Latency | None:
        return self.latency.get(BACK_TO_BACK)


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """Where one action's time goes: medians by stage in order, and their limits."""

    actions: Count
    prompt_tokens: Count
    kernels: dict[str, str]
    measured_ms: dict[str, float]  # by stage, and `total`
    limits: Limits
