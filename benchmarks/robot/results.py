"""What a closed loop under faults came to, as its result file holds it. Seconds, milliseconds and counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.study import Target
from edge_vla.robot.ticks import Percentiles


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """One kind of fault, `injected` so many times for `seconds` each.

    `lapses`: times that the robot was held meanwhile, by reason. `misses` by reason, in the turns of the fault and of
    the way back. `acted_during`: actions that the robot took while the fault was there and had to be known; 0 for a
    flipped bit and dropped pictures, which need not be known.
    """

    name: str
    injected: int
    seconds: float
    lapses: dict[str, int]
    misses: dict[str, int]
    acted_during: int


@dataclass(frozen=True, kw_only=True)
class RobotActResult:
    """`edge-vla act` beside a robot's end in another process.

    `beyond`: misses in turns that no fault explains, by reason. The robot took `taken` actions, of which the loop did
    not hear in `unheard` cases because the link was cut; it refused some, by reason. `wrong`: actions that it took and
    nobody sent, or twice, or out of order, and those that were sent and did not arrive. `outcomes` of the demo world's
    tables. `priority` is that of both processes, `load_average` the machine's at the end, over 1, 5 and 15 minutes.
    """

    KIND: ClassVar[str] = "robot-act"
    VERSION: ClassVar[int] = 1

    minutes: float
    hertz: float
    turns: int
    acted: int
    missed: dict[str, int]
    beyond: dict[str, int]
    faults: list[FaultRow]
    taken: int
    unheard: int
    refused: dict[str, int]
    wrong: int
    connections: int
    action_ms: Percentiles
    policy_ms: Percentiles
    age_ms: Percentiles
    outcomes: dict[str, int]
    priority: str
    load_average: list[float]
    targets: list[Target]
