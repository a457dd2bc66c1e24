"""The thread that turns the newest frame into an action: never the executor's, which it must not block.

A frame that is old, unreadable or from before a clock's jump gives no action, and why is counted; the gate's watchdog
then brings the robot to rest. Knows neither rclpy nor where the policy runs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import DeviceLostError, EdgeVLAError, FrameError, UsageError
from edge_vla.robot import ticks
from edge_vla.robot.asker import Answer
from edge_vla.robot.bounds import Percentiles
from edge_vla.robot.cameras.checked import Inspector
from edge_vla.robot.faces import CameraError
from edge_vla.robot.gate import Gate
from edge_vla.robot.ros2.freshness import AgeRule
from edge_vla.robot.ros2.mailbox import Frame, Mailbox
from edge_vla.robot.ros2.messages import Origin, Stamp
from edge_vla.robot.units import Declaration, Floats

Skip = Literal["superseded", "instruction", "stale", "unreadable", "camera", "policy", "clock", "gate"]
"""Why a frame gave no action: a newer one came, no instruction, too old, no picture, frozen or black, the policy had no
answer, the clock jumped meanwhile, the gate let nothing pass."""

RECENT: Final = 600  # frames whose times are kept
WAIT_S: Final = 0.1


class Source(Protocol):
    """A policy, in this process or behind a server. EdgeVLAError where it has no answer for this frame."""

    @property
    def name(self) -> str: ...

    @property
    def statistics(self) -> Percentiles | None:
        """Of its data set, where known."""

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Answer: ...

    def close(self) -> None: ...


Publish = Callable[[Floats, Origin, float], None]
"""Values (dims,) in the robot's units, what they come from, and the seconds since its stamp."""


@dataclass(frozen=True)
class PilotState:
    """Since the pilot was made. Times are those of the last RECENT actions."""

    frames: int
    actions: int
    skipped: Mapping[Skip, int]
    reason: str  # why the last frame gave no action; empty if it gave one
    policy_ms: ticks.Percentiles
    age_ms: ticks.Percentiles  # of the image when its action was sent


class Pilot:
    """From `offer` to the gate. `instruction` may be set at any time; the next frame follows it."""

    def __init__(
        self,
        source: Source,
        robot: Declaration,
        rule: AgeRule,
        publish: Publish,
        ros_now: Callable[[], int],
        *,
        instruction: str = "",
        on_lapse: Callable[[str], None] | None = None,
        on_fatal: Callable[[Exception], None],
    ) -> None:
        """`ros_now`: ROS time in nanoseconds. `on_fatal` is called once, from the pilot's thread, which then ends."""
        self.instruction = instruction
        self._source, self._rule, self._publish, self._ros_now = source, rule, publish, ros_now
        self._period, self._on_fatal = robot.period_ms / 1e3, on_fatal
        self._box = Mailbox[Frame]()
        self._epoch = self._frames = self._actions = 0
        self._skipped, self._reason = Counter[Skip](), ""
        self._policy_ms, self._age_ms = deque[float](maxlen=RECENT), deque[float](maxlen=RECENT)
        self._origin = Origin(Stamp(0, 0), "")  # of the frame that is being acted on
        self._taken = 0.0
        self._inspector = Inspector("the camera", robot.camera)
        self.gate = Gate(robot, self._send, source.statistics, on_lapse=on_lapse)
        self._thread = threading.Thread(target=self._run, name=f"pilot {robot.name}", daemon=True)

    @property
    def state(self) -> PilotState:
        skipped = Counter(self._skipped)
        skipped["superseded"] += self._box.superseded
        return PilotState(
            frames=self._frames,
            actions=self._actions,
            skipped=+skipped,
            reason=self._reason,
            policy_ms=ticks.Percentiles.of(list(self._policy_ms)),
            age_ms=ticks.Percentiles.of(list(self._age_ms)),
        )

    def start(self, pose: tuple[float, ...] | None = None) -> None:
        """An episode begins, the robot at rest at `pose`, where its declaration needs one."""
        if pose is not None or not self.gate.limiter.started:
            self.gate.reset(pose)
        self._thread.start()

    def offer(self, origin: Origin, received: float, read: Callable[[], NDArray[np.uint8]]) -> None:
        """A frame has come. Never waits; it may be replaced by a newer one before anybody looks at it."""
        self._frames += 1
        self._box.put(Frame(origin, received, read, self._epoch))

    def jumped(self, reason: str) -> None:
        """The clock has jumped: frames from before it are not acted on, and the robot comes to rest."""
        self._epoch += 1
        self._box.clear()
        self._skip("clock", reason)
        self.gate.lapse(reason)

    def stop(self, reason: str, rest_s: float) -> None:
        """No action from now on: come to rest inside the limits within `rest_s`, else at once. May be called twice."""
        self._box.close()
        self.gate.come_to_rest(reason, rest_s)  # an answer that is still to come does not pass any more
        self.gate.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(rest_s)

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while not self._box.closed:
                wait = due - time.monotonic()
                if wait > 0:  # the robot takes an action a period, however fast the camera is
                    time.sleep(min(wait, WAIT_S))
                    continue
                frame = self._box.take(WAIT_S)
                if frame is not None and self._look(frame):
                    now = time.monotonic()
                    due = due + self._period if now - due < self._period else now + self._period
        except Exception as error:  # noqa: BLE001 - whatever it is, no action will come
            self.gate.lapse(f"the policy failed: {error}", latch=True)
            self._on_fatal(error)

    def _look(self, frame: Frame) -> bool:
        """Whether the policy was asked."""
        instruction = self.instruction.strip()
        if not instruction:
            return self._skip("instruction", "no instruction yet: publish one, or set the parameter instruction")
        now = time.monotonic()
        age = self._rule.age(frame.origin.stamp.nanoseconds, self._ros_now(), frame.received, now)
        if age.stale:
            return self._skip("stale", age.stale)
        taken = now - age.seconds
        try:
            image = frame.read()
            self._inspector.look(image, taken)
            answer = self._source.act(image, instruction, time.monotonic() - taken)
        except FrameError as error:
            return self._skip("unreadable", str(error))
        except CameraError as error:  # frozen or black: surely no fresh action will come
            self.gate.lapse(str(error))
            return self._skip("camera", str(error))
        except DeviceLostError:
            raise
        except EdgeVLAError as error:
            self._skip("policy", str(error))
            return True
        self._policy_ms.append(1e3 * (time.monotonic() - now))
        if frame.epoch != self._epoch:
            self._skip("clock", "the clock jumped while the policy thought about the image")
            return True
        self._act(frame, answer, taken)
        return True

    def _act(self, frame: Frame, answer: Answer, taken: float) -> None:
        self._origin, self._taken = frame.origin, taken
        until = taken + self._rule.most_s
        if answer.valid_until is not None:
            until = min(until, answer.valid_until)
        try:
            limited = self.gate.act(answer.values, valid_until=until)
        except UsageError:
            raise  # an action of another shape: no frame will bring a better one
        except EdgeVLAError as error:
            self._skip("gate", str(error))
            return
        if limited is None:
            self._skip("gate", self.gate.state.reason)
            return
        self._actions += 1
        self._reason = ""
        self._age_ms.append(1e3 * (time.monotonic() - taken))

    def _send(self, values: Floats) -> None:
        """The gate's: it alone decides what goes out, and says what it is."""
        if self.gate.sending == "action":
            self._publish(values, self._origin, time.monotonic() - self._taken)
        else:
            self._publish(values, Origin(Stamp.of(self._ros_now()), self._origin.frame_id, rest=True), 0.0)

    def _skip(self, why: Skip, reason: str) -> bool:
        self._skipped[why] += 1
        self._reason = reason
        return False
