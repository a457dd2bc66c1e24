"""Whether a policy still does its task, on the same starts as the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_vla.bench.result.agreement import Count, Interval, Share
from edge_vla.bench.result.performance import Samples


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
    episodes: Samples | None = None


@dataclass(kw_only=True)
class ClosedLoop:
    environment: str
    margin: Share
    regimes: list[Regime] = field(default_factory=list)
