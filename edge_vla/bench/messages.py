"""What the parent asks of a worker process and what it replies: a line of JSON each way, `[type, fields]`.

The worker may run in a peer's own Python, so this imports only what the run side needs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edge_vla import typed_json
from edge_vla.bench.result import CudaMemory, EpisodeRow, StageProfile
from edge_vla.bench.schedule import Record, Warmed
from edge_vla.checkpoint import Arithmetic
from edge_vla.openvla.evaluation import Preprocess


@dataclass(frozen=True)
class System:
    """A policy to measure: an artifact, a checkpoint, or with `peer` a checkpoint run by another engine."""

    name: str
    path: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    dtype: str = "bf16"
    device: str = "auto"
    vision: str = "auto"
    kernel: str = "auto"
    unnorm_key: str | None = None
    peer: str | None = None
    python: str | None = None  # interpreter of a peer's own environment
    calibration: str | None = None  # folder of frames for a peer that calibrates
    prompt: str | None = None  # in place of what a checkpoint says, as are the statistics
    statistics: str | None = None
    preprocess: Preprocess = "none"


@dataclass(frozen=True)
class Load:
    """Open the policy and the first `limit` frames of a folder; replied with Loaded."""

    system: System
    frames: str
    limit: int | None


@dataclass(frozen=True)
class Loaded:
    ready_s: float
    first_ms: float
    load_peak_bytes: int
    weights: dict[str, int]  # bytes by part
    kernels: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Predict:
    """Act on every frame and predict each token given those in the file `forced` (None: its own) before it.

    Writes arrays to the file `out`; `floor` names a harmless change to make first. Replied with Done.
    """

    out: str
    forced: str | None
    floor: str | None


@dataclass(frozen=True)
class WarmUpFor:
    """Act until times are stable, at most `max_s`; replied with Warmed."""

    max_s: float


@dataclass(frozen=True)
class Time:
    """Act on frames by index, back to back or one every `period_s`; replied with Timed."""

    indices: list[int]
    period_s: float | None = None


@dataclass(frozen=True)
class Timed:
    records: list[Record]
    tokens: list[tuple[int, tuple[int, ...]]]  # frame, tokens
    cuda: CudaMemory | None  # peaks of torch's allocator so far, if it uses a GPU


@dataclass(frozen=True)
class ProfileStages:
    """Profile the stages of one action; replied with a StageProfile."""

    actions: int


@dataclass(frozen=True)
class RunEpisodes:
    """Closed-loop episodes in an environment (`package.module:attribute`); replied with Episodes."""

    environment: str
    kind: str
    first: int
    count: int
    delays_ms: list[float] | None = None


@dataclass(frozen=True)
class Episodes:
    rows: list[EpisodeRow]


@dataclass(frozen=True)
class Done:
    """Nothing else to say."""


@dataclass(frozen=True)
class Failure:
    """An error that a user can cause, by the name of its class in `edge_vla.errors`."""

    error: str
    message: str


Request = Load | Predict | WarmUpFor | Time | ProfileStages | RunEpisodes
Reply = Loaded | Warmed | Timed | StageProfile | Episodes | Done | Failure
Message = Request | Reply

TYPES: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        *(Load, Predict, WarmUpFor, Time, ProfileStages, RunEpisodes),
        *(Loaded, Warmed, Timed, StageProfile, Episodes, Done, Failure),
    )
}


def encode(message: Message) -> str:
    return json.dumps([type(message).__name__, dataclasses.asdict(message)]) + "\n"


def decode(line: str) -> Message:
    name, fields = json.loads(line)
    message: Message = typed_json.from_json(TYPES[name], fields)
    return message
