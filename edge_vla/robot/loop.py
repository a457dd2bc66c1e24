"""The closed loop: at a fixed rate, the newest picture, one action, the gate, the robot.

Every turn that is due ends in an action that the robot has, or in one reason why there was none; a late action is never
sent. Keeps to `time.monotonic`, so that a clock that is set changes nothing. Knows no camera, policy or link but by
their faces. Not a safety-rated function.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from edge_vla.errors import EdgeVLAError, ResourceError
from edge_vla.robot.asker import Actor, Answer, Asker, NoAction
from edge_vla.robot.bounds import Percentiles
from edge_vla.robot.faces import ActionSink, Camera, CameraError, Command, LinkError, Picture
from edge_vla.robot.gate import Gate
from edge_vla.robot.limiter import Limited
from edge_vla.robot.ticks import Summary, Tally, Tick
from edge_vla.robot.units import Declaration, Floats

WAIT: Final = 0.5  # of a period, at most, for a picture that has not been acted on
REST_S: Final = 5.0  # at most, on the way to rest at the end
SLICE_S: Final = 0.05  # between two looks at whether it is to end, before the first motion
START_S: Final = 30.0  # for a first picture, a link and a first answer


class LapsedError(ResourceError):
    """A lapse that only a person may end has ended the run; the robot is at rest."""


class Miss(Exception):  # noqa: N818 - a turn's outcome
    """Why this turn sends nothing."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Watcher:
    """Who is told what happens, in the loop's thread and between two turns.

    `on_lapse(reason, detail)`, in whichever thread noticed: a reason to count by, and a sentence with what helps.
    """

    on_tick: Callable[[Tick], None]
    on_lapse: Callable[[str, str], None]


class Loop:
    """One run. `robot` says rate, limits and what a miss means; `pose` is where it rests at the start, where needed."""

    def __init__(
        self,
        robot: Declaration,
        camera: Camera,
        actor: Actor,
        sink: ActionSink,
        statistics: Percentiles | None = None,
        *,
        pose: Sequence[float] | None = None,
        deadline_s: float | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """`deadline_s`: from when a turn is due to when the robot must have its action; a period unless given."""
        self.robot, self.tally = robot, Tally()
        self.period_s = robot.period_ms / 1e3
        self._deadline_s = min(deadline_s or self.period_s, self.period_s)
        self._camera, self._sink, self._pose = camera, sink, pose
        self.watcher = watcher
        self._actor, self._asker = actor, Asker(actor)
        self._ended = threading.Event()
        self._asked = 0  # the number of the last picture that the policy was asked about
        self._sent = 0
        self._stamps = (0.0, 0.0)  # taken and valid_until of the action that is being sent
        self._why: Miss | None = None  # what last went wrong, since an action went out
        self.over = ""  # why it ends
        self._resting = False  # because it ends
        self._started = time.monotonic()
        self._finished: float | None = None
        self.gate = Gate(robot, self._send, statistics, on_lapse=self._lapsed)

    def end(self, reason: str) -> None:
        """From a signal handler or another thread: the robot comes to rest, then `run` returns."""
        self.over = self.over or reason
        self._ended.set()

    def prepare(self, wait_s: float = START_S) -> None:
        """A first picture, a link, and a first answer, which is not sent: what is missing is said before a motion."""
        until = time.monotonic() + wait_s
        picture = self._first(until)
        if picture is None or self._ended.is_set():
            return
        self._asker.ask(picture, until)
        try:
            if self._asker.answer(until, self._ended.is_set) is None and not self._ended.is_set():
                raise ResourceError(f"the policy gave no first action within {wait_s:g} s: try edge-vla run")
        except NoAction as error:
            raise ResourceError(f"the policy gave no first action: {error}") from error
        self._actor.reset()

    def _first(self, until: float) -> Picture | None:
        """A first picture, with the link there; None where `end` was called before."""
        picture: Picture | None = None
        while not self._ended.is_set():
            try:
                if picture is None:
                    picture = self._camera.newest(0, min(until, time.monotonic() + SLICE_S))
                self._sink.ready()
                return picture
            except CameraError as error:
                if time.monotonic() >= until or error.fault not in ("silent", "unplugged"):
                    raise
            except LinkError:
                if time.monotonic() >= until:
                    raise
            self._ended.wait(SLICE_S)
        return None

    def run(self, seconds: float | None = None) -> Summary:
        """Until `end`, or for so many `seconds`, or until a recording is over.

        LapsedError where a lapse only ends by a reset; NumericError for a number that is not finite. Whatever happens,
        the robot is brought to rest first.
        """
        try:
            if not self.gate.limiter.started or self._pose is not None:
                self.gate.reset(self._pose)
            self._started = time.monotonic()
            try:
                self._turns(seconds)
            finally:
                self._finished = time.monotonic()
            self._come_to_rest(self.over or "the run is over")
        except EdgeVLAError as error:
            self._come_to_rest(str(error))
            raise
        finally:
            self.gate.close()
        return self.summary()

    def summary(self) -> Summary:
        """Of the turns until now, or until the run ended; the way to rest is not in it."""
        return self.tally.summary((self._finished or time.monotonic()) - self._started)

    def close(self) -> bool:
        """Stops the robot, if it has not been, and lets go of policy, camera and link. False: the policy hangs."""
        self.gate.close()
        self._camera.close()
        self._sink.close()
        back = self._asker.close()
        if back:
            self._actor.close()
        return back

    def _turns(self, seconds: float | None) -> None:
        number = 0
        while seconds is None or number * self.period_s < seconds:
            due = self._started + number * self.period_s
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            tick = self._turn(number, due)
            if tick is None or self._ended.is_set():
                return
            self._done(tick)
            if self.gate.state.latched:
                self._give_up()
            following = max(number + 1, int((time.monotonic() - self._started) / self.period_s))
            for skipped in range(number + 1, following):
                self._done(self._missed(skipped, Miss("overrun", "the turn before it took longer than a period")))
            number = following
        self._ended.wait(max(0.0, self._started + number * self.period_s - time.monotonic()))  # the last one's period

    def _done(self, tick: Tick) -> None:
        self.tally.add(tick)
        if self.watcher is not None:
            self.watcher.on_tick(tick)

    def _turn(self, number: int, due: float) -> Tick | None:
        """What one turn comes to; None where it ends the run."""
        try:
            return self._act(number, due)
        except CameraError as error:
            if error.fault == "ended":
                self.end(str(error))
                return None
            self._why = Miss(f"camera {error.fault}", str(error))
            if error.fault != "silent":  # a picture that is late is no failure yet: the watchdog counts
                self.gate.lapse(str(error))
        except LinkError as error:
            self._why = Miss(f"link {error.fault}", str(error))
            self.gate.lapse(str(error))
        except NoAction as error:
            self._why = Miss(error.reason, str(error))
        except Miss as miss:
            self._why = miss
        return self._missed(number, self._why)

    def _act(self, number: int, due: float) -> Tick:
        self._sink.ready()
        picture = self._camera.newest(self._asked, max(due, time.monotonic()) + WAIT * self._deadline_s)
        looked = time.monotonic()
        last = min(due + self._deadline_s, picture.taken + self.robot.max_age_s)
        answer = self._answer(picture, last)
        answered = time.monotonic()
        valid_until = min(picture.taken + self.robot.max_age_s, answer.valid_until or last)
        if answered >= min(last, valid_until):
            raise Miss("late", f"an action came {1e3 * (answered - looked):.0f} ms after its picture was looked at")
        if self._ended.is_set():
            raise Miss("ended", self.over)
        self._stamps = (picture.taken, valid_until)
        limited = self.gate.act(answer.values, valid_until=valid_until)
        if limited is None:
            raise Miss("held", self.gate.state.reason)
        self._why = None
        return self._acted(number, picture, (looked, answered), limited)

    def _answer(self, picture: Picture, last: float) -> Answer:
        """The policy's, to this picture, by `last`."""
        age = time.monotonic() - picture.taken
        if time.monotonic() >= last:
            raise Miss("late", f"the picture was {1e3 * age:.0f} ms old when it was looked at")
        if not self._asker.ask(picture, last):
            raise Miss("policy busy", "the policy is still at work on an earlier picture: lower the rate")
        self._asked = picture.number
        answer = self._asker.answer(last, self._ended.is_set)
        if answer is None:
            raise Miss("late", f"no action within {1e3 * (last - picture.taken) - 1e3 * age:.0f} ms: lower the rate")
        return answer

    def _acted(self, number: int, picture: Picture, times: tuple[float, float], limited: Limited) -> Tick:
        now, (looked, answered) = time.monotonic(), times
        return Tick(
            number,
            round(number * self.period_s, 6),
            picture=picture.number,
            age_ms=round(1e3 * (now - picture.taken), 3),
            policy_ms=round(1e3 * (answered - looked), 3),
            action_ms=round(1e3 * (now - looked), 3),
            asked=tuple(limited.asked.tolist()),
            sent=tuple(limited.values.tolist()),
            causes=limited.causes,
            watch="running",
        )

    def _missed(self, number: int, miss: Miss) -> Tick:
        return Tick(number, round(number * self.period_s, 6), miss.reason, str(miss), watch=self.gate.state.watch)

    def _send(self, values: Floats) -> None:
        """The gate's: gives a command its number and its stamps."""
        self._sent += 1
        kind = self.gate.sending
        taken, valid_until = self._stamps if kind == "action" else (None, time.monotonic() + self.period_s)
        try:
            self._sink.send(Command(kind, self._sent, values, taken, valid_until))
        except LinkError as error:
            self._why = Miss(f"link {error.fault}", str(error))
            raise

    def _lapsed(self, reason: str) -> None:
        """The gate's: a lapse began. Its watchdog only knows that nothing came; the loop knows why."""
        if self._resting:
            return
        why = self._why or Miss("no action", reason)
        self.tally.lapses[why.reason] += 1
        if self.watcher is not None:
            self.watcher.on_lapse(why.reason, reason if str(why) in reason else f"{reason}: {why}")

    def _give_up(self) -> NoReturn:
        raise LapsedError(
            f"the robot is held: {self.gate.state.reason}; see to it, then start again, "
            "or declare watchdog.recover in robot.toml"
        )

    def _come_to_rest(self, reason: str) -> None:
        """The way to rest as declared, before the gate's stop."""
        self._resting = True
        self.gate.come_to_rest(reason, REST_S)
