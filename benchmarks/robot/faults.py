"""The faults of a camera, of a link and of a robot, what each may be felt as in the loop's log, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from benchmarks.robot.relay import Relay
from benchmarks.robot.stream import Stream
from edge_vla.demo.robot import Table
from edge_vla.robot.receiver import Command, Receiver

BACK_S: Final = 3.0  # after a fault: connecting again, and as many fresh actions as the robot declares
BEFORE_S: Final = 0.25  # a turn that was under way when the fault came


@dataclass
class Site:
    """The robot's side: its world, its ends, and what it took."""

    table: Table
    stream: Stream
    relay: Relay
    receiver: Receiver
    taken: list[tuple[float, Command]] = field(default_factory=list)
    rests: list[str] = field(default_factory=list)

    def act(self, command: Command) -> None:
        self.taken.append((time.monotonic(), command))
        self.table.act(np.array(command.values), asked=command.kind == "action")


@dataclass(frozen=True)
class Fault:
    """`reasons` that turns may be missed for meanwhile; `lapse` that holds the robot, None for none.

    `known_s` after its beginning no action may reach the robot until it ends; None: some may.
    """

    name: str
    seconds: float
    begin: Callable[[Site], None]
    end: Callable[[Site], None]
    reasons: tuple[str, ...]
    lapse: str | None
    known_s: float | None


@dataclass(frozen=True)
class Injected:
    fault: Fault
    began: float
    ended: float

    def covers(self, at: float) -> bool:
        """Whether it can be felt at that moment: from the turn under way on, until the robot may move again."""
        return self.began - BEFORE_S <= at <= self.ended + BACK_S


def camera(state: Any) -> Callable[[Site], None]:
    return lambda site: setattr(site.stream, "state", state)


def relay(state: Any) -> Callable[[Site], None]:
    return lambda site: setattr(site.relay, "state", state)


def ready(value: bool) -> Callable[[Site], None]:
    return lambda site: setattr(site.receiver, "ready", value)


def flip(site: Site) -> None:
    site.relay.flip.set()


def nothing(site: Site) -> None:
    """It is over by itself."""


UNPLUGGED: Final = ("camera unplugged", "camera silent")
LINK: Final = ("link cut", "link silent", "link refused")
FAULTS: Final = (
    Fault("camera frozen", 3.0, camera("frozen"), camera("well"), ("camera frozen",), "camera frozen", 1.7),
    Fault("link cut", 2.0, relay("cut"), relay("well"), LINK, "link cut", 0.05),
    Fault("camera black", 1.6, camera("black"), camera("well"), ("camera black",), "camera black", 0.5),
    Fault("link stalled", 2.0, relay("stalled"), relay("well"), LINK, "link silent", 0.05),
    Fault("camera silent", 1.8, camera("silent"), camera("well"), ("camera silent",), "camera silent", 0.5),
    Fault("a bit of a command flipped", 0.2, flip, nothing, LINK, "link cut", None),
    Fault("camera unplugged", 2.0, camera("unplugged"), camera("well"), UNPLUGGED, "camera unplugged", 0.5),
    Fault("the robot refuses", 1.6, ready(False), ready(True), LINK, "link refused", 0.05),
    Fault("camera damaged", 1.2, camera("damaged"), camera("well"), ("camera unreadable",), "camera unreadable", 0.5),
    Fault("pictures dropped", 0.3, camera("silent"), camera("well"), ("camera silent",), None, None),
)  # fmt: skip
