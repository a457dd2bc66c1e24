"""What the loop needs of a camera and of a robot's link; every adapter has one of these two faces.

All times are `time.monotonic()` seconds of this machine. Knows no camera, no link and no policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import ResourceError
from edge_vla.robot.units import Floats

CameraFault = Literal["silent", "unplugged", "frozen", "black", "unreadable", "ended"]
"""`silent`: no picture came. `unplugged`: device or stream is gone. `frozen`: the same pixels for longer than declared.
`unreadable`: what came is no picture. `ended`: a recording is over."""

LinkFault = Literal["cut", "silent", "refused", "malformed"]
"""`cut`: no connection. `silent`: the robot does not answer. `refused`: it did not take the command. `malformed`: what
it sent cannot be read."""

Kind = Literal["action", "hold", "stop"]
"""`action`: what the policy asked for, limited. `hold`: one of the values on the way to rest. `stop`: rest at once."""


class CameraError(ResourceError):
    """Why there is no picture to act on."""

    def __init__(self, fault: CameraFault, message: str) -> None:
        super().__init__(message)
        self.fault: CameraFault = fault


class LinkError(ResourceError):
    """Why the robot did not take a command. The gate holds, and goes on as the robot's declaration says.

    `taken` False: surely not, as if it had never been sent. None: nobody knows.
    """

    def __init__(self, fault: LinkFault, message: str, *, taken: Literal[False] | None = None) -> None:
        super().__init__(message)
        self.fault: LinkFault = fault
        self.taken = taken


@dataclass(frozen=True, eq=False)
class Picture:
    """`image` (H, W, 3) uint8 RGB. `taken`: when it arrived, or earlier where the source knows. `number` grows."""

    image: NDArray[np.uint8]
    taken: float
    number: int


class Camera(Protocol):
    """Holds the newest picture only; a thread of its own, or the source's, brings them."""

    @property
    def name(self) -> str: ...

    def newest(self, after: int, until: float) -> Picture:
        """The newest picture of a number above `after`; waits for one until `until`.

        CameraError `silent` where none came, another where the source failed and has not come back.
        """

    def close(self) -> None:
        """May be called twice, and from another thread than `newest`."""


@dataclass(frozen=True, eq=False)
class Command:
    """What goes to the robot: `values` (dims,) float64 in its units, already limited.

    `number` grows by one a command. `taken` is the picture's time, None for `hold` and `stop`. It may be started until
    `valid_until`, and not after.
    """

    kind: Kind
    number: int
    values: Floats
    taken: float | None
    valid_until: float


class ActionSink(Protocol):
    """A robot's link. Connects again by itself. `send` from one thread at a time."""

    @property
    def name(self) -> str: ...

    def ready(self) -> None:
        """LinkError where a command could not be sent now: asked before a policy is, because that takes longer."""

    def send(self, command: Command) -> None:
        """Returns when the robot has it; waits no longer than the command is valid. LinkError where it has not."""

    def close(self) -> None:
        """After the last command. May be called twice."""
