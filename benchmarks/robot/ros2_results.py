"""What the ROS 2 study measures, as its result file holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.serve.results import Spread


@dataclass(frozen=True, kw_only=True)
class Step:
    """One transition that a lifecycle client asked for, and the node's state after it."""

    transition: str
    succeeded: bool
    state: str


@dataclass(frozen=True, kw_only=True)
class MessageRun:
    """`sent` images at `rate_hz`, each with a stamp of its own, and what became of them.

    `skipped` by the node, which counts why: superseded by a newer image, too old by now. `lost` had neither an action
    nor a reason. `doubled` had more than one action. `out_of_order` came after one of a later image. `wrong` is not,
    number for number, what `policy.act` gives for that picture in the study's own process. `unasked`: rest commands
    while images came. `paced`: an image waited for the action before it.
    """

    rate_hz: float
    paced: bool
    sent: int
    answered: int
    skipped: dict[str, int]
    lost: int
    doubled: int
    out_of_order: int
    wrong: int
    unasked: int
    seconds: float
    achieved_hz: float
    round_trip: Spread


@dataclass(frozen=True, kw_only=True)
class Named:
    """Two endpoints that do not fit, and the node's words for it, from /diagnostics."""

    what: str
    line: str


@dataclass(frozen=True, kw_only=True)
class Ros2Result:
    """The node in a process of its own, over DDS on loopback. `actions` distinct ones among `pictures`."""

    KIND: ClassVar[str] = "robot-ros2"
    VERSION: ClassVar[int] = 1

    distribution: str
    middleware: str
    artifact: str
    pictures: int
    actions: int
    lifecycle: list[Step]
    runs: list[MessageRun]
    mismatches: list[Named]
    note: str
