"""What `edge-vla bench` measured, as types: one dataclass a phase. The JSON Schema is generated from these.

A field that was not measured is None, a list of nothing is empty; no figure hides in a name. Milliseconds, bytes, robot
units and logits stand in the field names or beside them. Knows shapes of results; knows nothing of how they are
measured, written (`result_file.py`) or shown (`reports/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from edge_vla.bench.provenance import Provenance
from edge_vla.bench.statistics import Interval
from edge_vla.device.limits import Limits

VERSION: Final = 3
KIND: Final = "bench"
BACK_TO_BACK: Final = "back to back"  # the latency mode without pauses
ROUNDING_NOISE: Final = "rounding noise"  # the floor that gates are declared against

Count = int
Share = float


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the figures are about; every table and plot names it."""

    name: str
    scope: str  # a sentence: these figures are about this model and no other


@dataclass(frozen=True, kw_only=True)
class FrameSet:
    source: Literal["given", "synthetic"]
    name: str
    count: Count
    episodes: Count
    sha256: str
    by_phase: dict[str, Count]


# Agreement


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Bins between two tokens of one position. Percentiles are distances that occurred."""

    mean: float
    p50: int
    p95: int
    p99: int
    max: int
    within_1: Share
    within_2: Share
    beyond_8: Share


@dataclass(frozen=True, kw_only=True)
class BinsApart:
    overall: Distances
    by_dimension: list[Distances]
    histogram: list[tuple[int, Count]]  # (bins apart, positions), ascending


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Positions, and how many of them changed their token. `low` and `high` bound the reference's margins, in logits."""

    positions: Count
    flips: Count
    low: float | None = None
    high: float | None = None

    @property
    def share(self) -> float | None:
        return self.flips / self.positions if self.positions else None


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Flips by the reference's margin (top-1 minus top-2 logit): tenths of positions, and both sides of the floor."""

    floor: float | None  # margin that rounding noise alone may overturn, logits
    deciles: list[Flips]
    high_margin: Flips | None
    near_tie: Flips | None


@dataclass(frozen=True, kw_only=True)
class UnitError:
    """Absolute error of one dimension in robot units; `nrmse` relative to q99 - q01."""

    mean: float
    p95: float
    p99: float
    max: float
    nrmse: float | None


@dataclass(frozen=True, kw_only=True)
class RobotUnits:
    nrmse: float  # root mean square by frame over all dimensions, then the mean, as NanoLLM computes it
    by_dimension: list[UnitError]


@dataclass(frozen=True, kw_only=True)
class Gripper:
    flips: Interval  # share of frames where one opens and the other closes
    transitions: Count
    shift_mean_steps: float | None
    shift_max_steps: float | None
    dimension: int


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL(reference || candidate) over the action ids, nats."""

    overall: Interval
    by_dimension: list[Interval]
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class OutsideMass:
    """Probability on ids that are no action, over the whole vocabulary."""

    reference_mean: float
    candidate_mean: float
    candidate_max: float


@dataclass(frozen=True, kw_only=True)
class SoftActionL1:
    """Distance in bins between the actions expected under each distribution."""

    mean: float
    by_dimension: list[float]


@dataclass(frozen=True, kw_only=True)
class InvalidTokens:
    """Share of positions whose best id of the whole vocabulary is no action token."""

    candidate: Share
    reference: Share


@dataclass(frozen=True, kw_only=True)
class RecordedMatch:
    equal: Interval
    within_2_by_dimension: list[Share]
    l1_by_dimension: list[float]  # robot units


@dataclass(frozen=True, kw_only=True)
class AgainstRecorded:
    """Both policies' free-running tokens against the recorded actions; differences are candidate minus reference."""

    candidate: RecordedMatch
    reference: RecordedMatch
    equal_difference: Interval
    l1_difference_by_dimension: list[Interval]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Candidate minus reference summed over every run of `window` steps, in ranges q99 - q01."""

    window: int  # steps
    windows: Count
    mean: float
    p95: float
    bias_by_dimension: list[float]
    spread_by_dimension: list[float]


@dataclass(frozen=True, kw_only=True)
class PhaseAgreement:
    frames: Count
    teacher_forced: Interval
    exact_action: Interval


@dataclass(frozen=True, kw_only=True)
class LowestDimension:
    dimension: str
    low: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One policy's action tokens against the reference's, on the same frames. Shares are of positions or frames."""

    frames: Count
    episodes: Count
    dims: list[str]
    teacher_forced: Interval
    teacher_forced_by_dimension: list[Interval]
    teacher_forced_holm_low: list[float]
    teacher_forced_lowest_holm: LowestDimension
    free_running: Interval
    free_running_by_dimension: list[Interval]
    first_divergence: list[Count]  # frames that first differ at each dimension; the last entry never does
    exact_tokens: Interval
    exact_action: Interval
    bins_apart: BinsApart
    robot_units: RobotUnits
    gripper: Gripper
    kl: Divergence
    outside_mass: OutsideMass
    soft_action_l1: SoftActionL1
    margins: Margins
    invalid: InvalidTokens
    against_recorded: AgainstRecorded | None
    drift: list[Drift]  # windows that no episode is long enough for are left out
    by_phase: dict[str, PhaseAgreement]


@dataclass(frozen=True, kw_only=True)
class McNemar:
    both: Count
    only_first: Count
    only_second: Count
    neither: Count
    p: Share


@dataclass(frozen=True, kw_only=True)
class AgainstPeer:
    """A candidate against a peer on the same frames, candidate minus peer: shares, and nats of KL from the reference."""

    teacher_forced_difference: Interval
    exact_action_difference: Interval
    kl_difference: Interval
    mcnemar_exact_action: McNemar


@dataclass(frozen=True, kw_only=True)
class WorstFrame:
    frame: int
    episode: str | None
    step: int | None
    instruction: str
    image: str | None  # data URI of a PNG
    reference_tokens: list[int]
    tokens: list[int]
    reference_action: list[float]
    action: list[float]
    bins_apart: list[int]


# Speed and memory


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
    series: list[tuple[float, int]]  # (seconds, bytes), peaks kept
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


@dataclass(kw_only=True)
class Performance:
    """Latency by mode, memory and what ran; filled while the run goes on."""

    latency: dict[str, Latency] = field(default_factory=dict)
    memory: Memory | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    harness_share: float | None = None  # of a query, spent in the harness
    timed_tokens: TimedTokens | None = None
    ratio_to: dict[str, SpeedRatio] = field(default_factory=dict)  # by candidate

    @property
    def back_to_back(self) -> Latency | None:
        return self.latency.get(BACK_TO_BACK)


@dataclass(frozen=True, kw_only=True)
class Operator:
    name: str
    ms: float
    calls: float  # an action


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """Where one action's time goes: medians by stage in order, their limits, and the costliest operators."""

    actions: Count
    prompt_tokens: Count
    kernels: dict[str, str]
    measured_ms: dict[str, float]  # by stage, and `total`
    limits: Limits
    operators: list[Operator]


# Closed loop


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """One closed-loop episode: what was asked, what came of it."""

    seed: int
    task: str
    instruction: str
    success: bool
    wrong_object: bool
    steps: Count


@dataclass(frozen=True, kw_only=True)
class Rate:
    success: Count
    episodes: Count
    low: Share  # Wilson's 95 % interval
    high: Share
    wrong_object: Count
    steps_mean: float | None  # of successes


@dataclass(frozen=True, kw_only=True)
class Pairs:
    both: Count
    only_reference: Count
    only_candidate: Count
    neither: Count


@dataclass(frozen=True, kw_only=True)
class PairedOutcome:
    """Candidate against reference on the same starts. `difference` holds the 90 % interval of a one-sided 5 % test."""

    pairs: Pairs
    difference: Interval
    mcnemar_p: float
    discordance: Share
    non_inferior: bool
    episodes_needed: Count


@dataclass(frozen=True, kw_only=True)
class Regime:
    """One way of letting the world run while the policy thinks."""

    name: str
    reference: dict[str, Rate]  # by kind of task, and `all`
    candidate: dict[str, Rate]
    overall: PairedOutcome
    by_kind: dict[str, PairedOutcome]
    episodes: Samples | None = None


@dataclass(kw_only=True)
class ClosedLoop:
    environment: str
    margin: Share
    regimes: list[Regime] = field(default_factory=list)


# The whole


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far a scheme may stay behind the reference: shares, by the bits that it keeps of a weight."""

    tokens_below_floor: Share  # of positions, teacher-forced, the interval's lower end
    actions_below_floor: Share  # of positions, free-running: early misses carry on
    high_margin_flips: Share  # of positions whose margin is above the floor
    gripper_flips_above_floor: Share  # of frames


@dataclass(frozen=True, kw_only=True)
class DeclaredClosedLoop:
    environment: str
    episodes: Count  # of each kind of task
    margin: Share
    live: bool


@dataclass(frozen=True, kw_only=True)
class DeclaredGates:
    """Bounds written down before anything was measured."""

    by_bits: dict[str, Bounds]
    repeated_inputs: float
    closed_loop: DeclaredClosedLoop | None


@dataclass(frozen=True, kw_only=True)
class Gate:
    name: str
    system: str
    passed: bool | None  # None: undecided, more frames or episodes settle it
    value: float | None
    bound: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class ArtifactFacts:
    name: str
    identity: str
    recipe: dict[str, object]  # as the manifest has it
    disk_bytes: int
    bits_per_weight: float
    calibration_leakage: Count | None  # frames here that it was calibrated on; None without calibration
    layer_errors: dict[str, dict[str, float | None]]  # relative error of each matrix, by layer and module


@dataclass(kw_only=True)
class Reference:
    name: str
    adapters: list[str]
    identity: str
    dtype: str
    performance: Performance = field(default_factory=Performance)
    rates: dict[str, Rate] | None = None  # lock-step
    failed: str | None = None


@dataclass(kw_only=True)
class Candidate:
    """An artifact. `failed` says why it could not be measured to the end."""

    name: str
    artifact: ArtifactFacts
    agreement: Agreement | None = None
    units_off: float | None = None  # its own actions minus its tokens decoded with the reference's statistics, max
    performance: Performance = field(default_factory=Performance)
    closed_loop: ClosedLoop | None = None
    worst_frames: list[WorstFrame] = field(default_factory=list)
    stage_profile: StageProfile | None = None
    against_peers: dict[str, AgainstPeer] = field(default_factory=dict)
    failed: str | None = None


@dataclass(kw_only=True)
class Peer:
    """Another engine on the same weights."""

    name: str
    description: str
    versions: dict[str, str | None] = field(default_factory=dict)
    agreement: Agreement | None = None
    units_off: float | None = None
    performance: Performance = field(default_factory=Performance)
    worst_frames: list[WorstFrame] = field(default_factory=list)
    failed: str | None = None


@dataclass(kw_only=True)
class Result:
    """A whole run: one reference, its noise floors, candidates, peers and gates."""

    name: str
    model: Model
    provenance: Provenance
    frames: FrameSet
    reference: Reference
    gates_declared: DeclaredGates
    floors: dict[str, Agreement] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    limits: Limits | None = None
    gates: list[Gate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    version: Literal[3] = VERSION
    kind: Literal["bench"] = KIND

    def row(self, name: str) -> Candidate | Peer:
        """A candidate's or a peer's row by its name, which is unique."""
        return next(row for row in (*self.candidates, *self.peers) if row.name == name)
