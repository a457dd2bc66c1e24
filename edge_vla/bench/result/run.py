"""A whole run: what was measured against which reference, and the gates on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from edge_vla.bench.provenance import Provenance
from edge_vla.bench.result.agreement import AgainstPeer, Agreement, Count, Share, WorstFrame
from edge_vla.bench.result.closed_loop import ClosedLoop, Rate
from edge_vla.bench.result.performance import Performance, StageProfile
from edge_vla.device.limits import Limits
from edge_vla.openvla.evaluation import Preprocess
from edge_vla.sensitivity import SensitivityReport

VERSION: Final = 3
KIND: Final = "bench"
ROUNDING_NOISE: Final = "rounding noise"  # the floor that gates are declared against


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
    preprocess: Preprocess = "none"  # what an evaluation script does to them first


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
    recipe: dict[str, Any]  # as the manifest has it
    disk_bytes: int
    bits_per_weight: float
    calibration_leakage: Count | None  # frames here that it was calibrated on; None without calibration
    sensitivity: SensitivityReport | None = None  # of a mixed export: why each linear has its bits


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
        rows: list[Candidate | Peer] = [*self.candidates, *self.peers]
        return next(row for row in rows if row.name == name)
