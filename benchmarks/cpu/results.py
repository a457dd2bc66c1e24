"""Results of the CPU studies. Milliseconds and bytes as the names say; None where a figure does not apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.cpu.llamacpp import LlamaCppFacts
from benchmarks.study import Target
from edge_vla.bench.result import Interval
from edge_vla.device.limits import Ceilings

PACKED, EAGER, LLAMA_CPP = "packed", "eager", "llama.cpp"  # ours, transformers' eager bf16 layers, llama.cpp


# engine


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one pass of each kind, as if all layers had been measured."""

    prefill_ms: float
    step_ms: float
    verify_ms: float | None  # six rows at once, as a draft is verified


@dataclass(frozen=True)
class SystemTimes:
    """One engine's decoder, and the vision part that goes with it."""

    name: str
    layers_measured: int
    median: StageTimes
    best: StageTimes
    decoder_ms: float  # median prefill and all decode steps of an action
    accepted_draft_ms: float | None  # median prefill and one verification
    vision_ms: float | None  # median

    @property
    def action_ms(self) -> float | None:
        return None if self.vision_ms is None else round(self.vision_ms + self.decoder_ms, 1)


@dataclass(frozen=True)
class EngineResult:
    """The decoder at the true shapes of a network, beside the machine's limits and other engines."""

    KIND: ClassVar = "engine"
    VERSION: ClassVar = 2

    model: str
    bits: int
    kernels: dict[str, str]
    layers: int  # of the network
    prompt_rows: int
    ceilings: Ceilings
    step_limit_ms: float  # a step's bytes at the measured read bandwidth
    prefill_limit_ms: float  # a prefill's operations at the measured rate of `arithmetic`
    arithmetic: str
    systems: list[SystemTimes]
    peak_bytes: int
    llama_cpp: LlamaCppFacts | None
    targets: list[Target]

    def system(self, name: str) -> SystemTimes | None:
        return next((system for system in self.systems if system.name == name), None)


# peers


@dataclass(frozen=True)
class DecoderTimes:
    """One decoder: medians of its turns, the best of them, and those medians as an action's prefill and steps."""

    name: str
    prefill_ms: float
    step_ms: float
    best_prefill_ms: float
    best_step_ms: float
    decoder_ms: float


@dataclass(frozen=True)
class ProductTimes:
    """One product of so many rows: the median of its turns, and its error relative to float64."""

    name: str
    rows: int
    milliseconds: float
    relative_error: float


@dataclass(frozen=True)
class CpuPeersResult:
    """The int4 decoder beside llama.cpp's, and one int4 product beside other libraries', random weights."""

    KIND: ClassVar = "cpu-peers"
    VERSION: ClassVar = 1

    model: str
    prompt_rows: int
    steps: int
    layers: int  # of the network; times are as if all had been measured
    layers_measured: int
    instructions: list[str]
    ceilings: Ceilings
    decoders: list[DecoderTimes]
    llama_cpp: dict[str, LlamaCppFacts]
    product: str
    products: list[ProductTimes]
    versions: dict[str, str]


# targets


@dataclass(frozen=True)
class TargetShare:
    """One product on one target: processor time of one thread, and its share of what bounds it."""

    kernel: str
    format: str
    rows: int
    limit: str  # "reading" the bytes of the weights, or the "peak" of the target's registers
    microseconds: int  # the best; of 24 products where there is one row
    share: float


@dataclass(frozen=True)
class TargetAction:
    """Median whole actions of the demo policy, in turns, where torch has no instructions that the target lacks."""

    kernel: str
    torch_may_use: dict[str, str]  # environment variables
    action_ms: float
    reference_ms: float
    eager_ms: float
    times_reference: float
    times_eager: float


@dataclass(frozen=True)
class TargetsResult:
    """Every target of the C engine, beside the limits of its instructions and of the memory."""

    KIND: ClassVar = "cpu-targets"
    VERSION: ClassVar = 1

    n: int
    k: int
    shares: list[TargetShare]
    actions: list[TargetAction]
    targets: list[Target]


# soak


@dataclass(frozen=True)
class Spread:
    """Times of so many actions, or of pieces of constant work."""

    name: str
    actions: int
    mean_ms: float
    p50_ms: float
    p99_ms: float

    @property
    def p99_over_p50(self) -> float:
        return self.p99_ms / self.p50_ms


@dataclass(frozen=True)
class SoakResult:
    """Thousands of actions: an artifact in turns with its reference, then a session alone."""

    KIND: ClassVar = "soak"
    VERSION: ClassVar = 1

    kernels: dict[str, str]
    frames: int
    reference: Spread
    artifact: Spread
    session: Spread
    controls: list[Spread]  # constant work, measured in the same turns: the machine's own spread
    alone: Spread  # the session, by itself
    growth_mib_per_1000_actions: float
    resident_mib: list[float]  # sampled over the run
    tensors_allocated_per_action: float
    bytes_kept_per_action: float
    targets: list[Target]

    def speedup(self, system: Spread) -> float:
        """Times faster than the reference, by medians of the same turns."""
        return self.reference.p50_ms / system.p50_ms


# drafts


@dataclass(frozen=True)
class Acceptance:
    """Dimensions of the first draft that were right, by episode-resampled share; and those at most one bin off."""

    drafted_actions: int
    overall: Interval
    by_dimension: list[Interval]
    reach: Interval | None
    carry: Interval | None
    whole_action: Interval
    within_one_bin: float
    within_one_bin_by_dimension: list[float]


@dataclass(frozen=True)
class DraftCost:
    """Means on the same frames; speed-ups over plain decoding in the same mode."""

    decoder_ms: float
    decoder_speedup: float
    action_speedup: float


@dataclass(frozen=True)
class StrategyResult:
    """One draft strategy in one mode. `bitwise_exact`: drafts wait for the prefill; else they are verified in it."""

    strategy: str
    bitwise_exact: bool
    actions: int
    different_actions: int  # whose tokens are not those of plain decoding in the same mode
    different_tokens: int
    passes_per_action: Interval
    actions_by_passes: dict[str, int]
    acceptance: Acceptance | None  # None where nothing was drafted
    cost: DraftCost | None  # None where it was not timed


@dataclass(frozen=True)
class DraftsResult:
    """What drafts save in closed loop."""

    KIND: ClassVar = "drafts"
    VERSION: ClassVar = 3

    kernels: dict[str, str]
    world: int
    episodes: int
    episodes_with_all_strategies: int
    training_episodes: int
    preprocess_and_vision_ms: float | None
    strategies: list[StrategyResult]
