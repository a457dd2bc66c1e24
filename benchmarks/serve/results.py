"""What the server's studies measure, as their result files hold it. Milliseconds, bytes and actions a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from benchmarks.study import Target


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of `count` times. On a busy machine `p5_ms` is nearest to what an idle one shows."""

    count: int
    p5_ms: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Spread:
        """Nearest rank. Of no times: zeros."""
        ordered = sorted(times_ms)
        if not ordered:
            return cls(count=0, p5_ms=0.0, p50_ms=0.0, p99_ms=0.0)
        low, middle, high = (round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 4) for q in (0.05, 0.5, 0.99))
        return cls(count=len(ordered), p5_ms=low, p50_ms=middle, p99_ms=high)


@dataclass(frozen=True, kw_only=True)
class OverheadResult:
    """One observation at a time, systems in turns of `in_a_row`. `policy` and `session` act in this process.

    The server keeps a session per robot, so `session` is what the others are compared with. `_wire` is the
    round trip less what the server says it computed; `_cpu` what client and event loop computed beside the engine,
    which other work on the machine does not lengthen much. `core`: the one where all of it ran, None where anywhere.
    """

    KIND: ClassVar[str] = "serve-overhead"
    VERSION: ClassVar[int] = 2

    image: list[int]
    in_a_row: int
    policy: Spread
    session: Spread
    websocket: Spread
    websocket_wire: Spread
    websocket_cpu: Spread
    rest: Spread
    rest_wire: Spread
    rest_cpu: Spread
    targets: list[Target]
    core: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RobotLoad:
    """One robot of a load. `refused` by code; `age` is the image's when its action was ready, as the reply says."""

    answered: int
    actions_per_s: float
    refused: dict[str, int]
    round_trip: Spread
    age: Spread


@dataclass(frozen=True, kw_only=True)
class Load:
    """`robots` that asked at the same time. `hertz` None: each asks as soon as it was answered.

    `crossed`: replies with another robot's name, another observation's id, or other tokens than that image gives.
    `stale`: replies for an older image than one already answered, or usable for longer than the contract says.
    `unanswered`: observations that got neither an action nor a refusal.
    """

    robots: list[RobotLoad]
    seconds: float
    hertz: float | None
    actions_per_s: float
    jain: float
    crossed: int
    stale: int
    unanswered: int
    round_trip: Spread
    age: Spread


@dataclass(frozen=True, kw_only=True)
class FairnessResult:
    """`capacity_per_s`: of 8 robots back to back, before and after `overload`, where they ask for twice that."""

    KIND: ClassVar[str] = "serve-fairness"
    VERSION: ClassVar[int] = 1

    capacity_per_s: float
    loads: list[Load]
    overload: Load
    targets: list[Target]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ServeSoakResult:
    """`rss_slope_mib_per_10_min` by least squares over samples of every second, without the first tenth.

    `rss_mib_by_minute`: the last of each minute. `note`: what else the machine did.
    """

    KIND: ClassVar[str] = "serve-soak"
    VERSION: ClassVar[int] = 1

    load: Load
    rss_start_mib: float
    rss_end_mib: float
    rss_slope_mib_per_10_min: float
    targets: list[Target]
    rss_mib_by_minute: list[float] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EpisodesResult:
    """Episodes of the demo world, in process and through the server, from the same starts."""

    KIND: ClassVar[str] = "serve-episodes"
    VERSION: ClassVar[int] = 1

    episodes: int
    actions: int
    differing_actions: int
    differing_episodes: int
    success_in_process: float
    success_served: float
    targets: list[Target]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was done, what had to follow, and what did. `held` None: not done, this machine does not allow it."""

    name: str
    expected: str
    observed: str
    held: bool | None


@dataclass(frozen=True, kw_only=True)
class ServeFaultsResult:
    KIND: ClassVar[str] = "serve-faults"
    VERSION: ClassVar[int] = 1

    faults: list[Fault]
