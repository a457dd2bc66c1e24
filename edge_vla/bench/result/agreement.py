"""How far one policy's action tokens are from another's on the same frames."""

from __future__ import annotations

from dataclasses import dataclass

Count = int
Share = float


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided interval. `deff`: variance over that of as many independent frames; `n`: frames."""

    mean: float
    low: float
    high: float
    deff: float = 1.0
    n: int = 0


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


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Positions, and how many of them changed their token; `low` and `high` bound the reference's margins, logits."""

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
class InvalidTokens:
    """Share of positions whose best id of the whole vocabulary is no action token."""

    candidate: Share
    reference: Share


@dataclass(frozen=True, kw_only=True)
class AgainstRecorded:
    """Shares of free-running tokens equal to the recorded action's; differences are candidate minus reference."""

    candidate: Interval
    reference: Interval
    equal_difference: Interval
    l1_difference_by_dimension: list[Interval]  # of distances from the recorded action, robot units


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
    teacher_forced_lowest_holm: LowestDimension
    free_running: Interval
    free_running_by_dimension: list[Interval]
    exact_tokens: Interval
    exact_action: Interval
    bins_apart: BinsApart
    robot_units: RobotUnits
    gripper: Gripper
    kl: Divergence
    outside_mass: OutsideMass
    margins: Margins
    invalid: InvalidTokens
    against_recorded: AgainstRecorded | None
    drift: list[Drift]  # windows that no episode is long enough for are left out
    by_phase: dict[str, PhaseAgreement]


@dataclass(frozen=True, kw_only=True)
class AgainstPeer:
    """A candidate against a peer on the same frames, candidate minus peer: shares, and nats of KL."""

    teacher_forced_difference: Interval
    exact_action_difference: Interval
    kl_difference: Interval


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
