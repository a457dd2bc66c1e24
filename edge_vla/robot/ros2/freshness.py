"""How old an image is, by its stamp and by when it came; and whether a clock has jumped. Pure: times are given.

ROS time says when a picture was taken but may be wrong or jump; this machine's monotonic clock says only when it came,
and never lies. The older of both counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LONGEST_S: Final = 3600.0  # a stamp that is older is another clock's
AHEAD_S: Final = 0.05  # a stamp may lie in the future by this much: clocks of two machines differ
APART_S: Final = 0.02  # two clocks that were read further apart than this were not read together
DRIFT_S: Final = 0.1  # more than this between two looks at both clocks is a jump


@dataclass(frozen=True)
class Age:
    """`seconds` since the picture was taken, as far as known; `stale` says why it may not be acted on, or is empty."""

    seconds: float
    stale: str = ""


@dataclass(frozen=True)
class AgeRule:
    """`unstamped`: whether an image without a stamp counts as taken when it came, instead of being refused."""

    most_s: float
    unstamped: bool = False
    simulated: bool = False

    def age(self, stamp_ns: int, ros_ns: int, received: float, now: float) -> Age:
        """`stamp_ns`: of the image's header. `ros_ns` and `now`: this moment, in ROS time and in monotonic seconds."""
        here = now - received
        if stamp_ns == 0:
            if not self.unstamped:
                return Age(here, "the image has no stamp: set it in the driver, or accept_unstamped: true")
            return self._aged(here, "since it came")
        if self.simulated and ros_ns == 0:
            return Age(here, "use_sim_time is true and no /clock has come: start the simulation, or ros2 bag --clock")
        by_stamp = (ros_ns - stamp_ns) / 1e9
        if by_stamp < -AHEAD_S:
            return Age(here, f"the image's stamp is {-by_stamp:.3f} s ahead of ROS time: {self._clocks()}")
        if by_stamp > LONGEST_S:
            return Age(by_stamp, f"the image's stamp is {by_stamp:.0f} s before ROS time: {self._clocks()}")
        return self._aged(by_stamp, "by its stamp") if by_stamp > here else self._aged(here, "since it came")

    def _aged(self, seconds: float, how: str) -> Age:
        if seconds <= self.most_s:
            return Age(max(seconds, 0.0))
        most = 1e3 * self.most_s
        return Age(seconds, f"the image is {1e3 * seconds:.0f} ms old {how}, at most {most:.0f} ms are allowed")

    def _clocks(self) -> str:
        if self.simulated:
            return "use_sim_time is true here, so the camera needs it too"
        return "let both machines' clocks agree (chronyc tracking), or set use_sim_time: true for a simulated camera"


class ClockWatch:
    """Notices that the system's clock was set, which ROS does not: by its distance from the monotonic one."""

    def __init__(self) -> None:
        self._distance: float | None = None

    def look(self, ros_now: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> str:
        """What happened since the last look, or nothing. Look more than once a second."""
        earlier, ros_ns = clock(), ros_now()
        later = clock()
        if later - earlier > APART_S:  # a busy machine put us aside between the two: nothing can be said
            return ""
        distance, before = ros_ns / 1e9 - later, self._distance
        self._distance = distance
        if before is None or abs(distance - before) <= DRIFT_S:
            return ""
        return jump(distance - before, simulated=False)


def jump(seconds: float, *, simulated: bool) -> str:
    """The name of a clock's jump."""
    way = "forward" if seconds > 0 else "back"
    cause = "a simulation or a bag began again, or was paused" if simulated else "somebody set the system's clock"
    return f"ROS time jumped {way} by {abs(seconds):.3f} s ({cause}): images from before it are not acted on"
