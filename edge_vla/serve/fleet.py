"""Several policies behind one server: a robot stays at one replica, and moves when that one dies.

Each replica has its own scheduler; here is no queue. What a dead replica had is answered E_ENGINE, and nothing is asked
twice: the robot sends a new image. A dead replica is started again. Deadlines and ages are of this process' clock,
which received the image. Knows neither Ray nor a wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from prometheus_client import Gauge

from edge_vla.errors import BackendError, DeviceLostError, EdgeVLAError, EdgeVLAWarning
from edge_vla.serve.activity import Activity, Watcher
from edge_vla.serve.affinity import Places
from edge_vla.serve.handles import Cluster, Fleeted, Handle, LostError
from edge_vla.serve.host import HostOptions, Progress, State
from edge_vla.serve.limits import check_observation
from edge_vla.serve.loading import Choices, OnProgress
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply
from edge_vla.serve.metrics import Metrics
from edge_vla.serve.pace import sustained
from edge_vla.serve.replica import Asked, Facts, Failed, Pulse, Refused

log = logging.getLogger("edge_vla.serve")
PULSE_S: Final = 0.5  # between two looks at a replica
SILENT_S: Final = 10.0  # without a pulse: a process that hangs
RESTART_S: Final = 0.5  # before a replica is started again, twice that after each failure
LONGEST_RESTART_S: Final = 30.0
DOWN_S: Final = 120.0  # without any replica: the server ends, to be started again
LOST: Final = "the replica that had this observation is lost: hold, and send a new one"


class Fleet:
    """Answers through `act`, once `start` is done, as a `Host` does. Everything runs on the event loop."""

    def __init__(self, cluster: Cluster, options: HostOptions | None = None, metrics: Metrics | None = None) -> None:
        self.options = options or HostOptions()
        self.metrics = metrics or Metrics()
        self.activity = Activity(time.monotonic, self.options.limits.robots)
        self.watchers: list[Watcher] = [self.activity]
        self.progress = Progress("verify", 0.0)
        self.lost = asyncio.Event()
        self.error: BaseException | None = None
        self._started = False
        self._ended: State | None = None
        self._cluster = cluster
        self._facts: Facts | None = None
        self._handles: dict[int, Handle] = {}
        self._pulses: dict[int, Pulse] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._places = Places(self.options.limits.robots)
        self._under_way: Counter[str] = Counter()
        self._ids, self._count, self._numbers = secrets.token_hex(3), count(1), count(1)
        self._down_since = time.monotonic()
        self.metrics.depth.set_function(lambda: self.depth)
        self.metrics.inflight.set_function(self._under_way.total)
        self.metrics.sessions.set_function(lambda: self._places.known)
        self.metrics.ready.set_function(lambda: self.ready)
        replicas = Gauge("edgevla_replicas", "Replicas that answer.", registry=self.metrics.registry)
        replicas.set_function(lambda: len(self._places.up))

    async def start(self, directory: Path, choices: Choices, on_progress: OnProgress | None = None) -> Fleeted:
        """Start every replica; ready when all are. Raises what stopped one, and then is FAILED."""
        try:
            replicas = self._cluster.open()
            loop = asyncio.get_running_loop()
            first = [loop.create_future() for _ in range(replicas)]
            keep = [self._keep(index, directory.resolve(), choices, first[index]) for index in range(replicas)]
            self._keepers = [asyncio.create_task(each) for each in keep]
            facts = asyncio.gather(*first)
            while not facts.done():
                self._report(on_progress, replicas)
                await asyncio.wait({facts}, timeout=PULSE_S)
            found: list[Facts] = await facts
        except BaseException as error:
            self._ended, self.error = State.FAILED, error
            await self._end_keepers()
            raise
        self._started, self.progress = True, Progress("measure", 1.0)
        self.metrics.model.labels(found[0].metadata.artifact, str(found[0].bits)).set(1)
        slowest = max(each.service_s for each in found)
        return Fleeted(found[0].metadata, found[0].key, found[0].bits, slowest, replicas)

    @property
    def state(self) -> State:
        if self._ended is not None:
            return self._ended
        return State.READY if self._started and self._places.up else State.LOADING

    @property
    def metadata(self) -> Metadata:
        return self._known.metadata

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    @property
    def stalled(self) -> bool:
        """Never: a replica whose device hangs is killed and started again."""
        return False

    @property
    def valid_ms(self) -> float:
        """The greatest age of an image whose action may still be started, at the slowest replica."""
        return max((pulse.valid_ms for pulse in self._up_pulses), default=0.0)

    @property
    def action_s(self) -> float:
        """What an action takes on the slowest replica."""
        return max((pulse.action_s for pulse in self._up_pulses), default=0.0)

    @property
    def depth(self) -> int:
        """Observations that wait, as of each replica's last pulse."""
        return sum(pulse.depth for pulse in self._up_pulses)

    def sustained(self, hertz: float) -> int:
        return sum(sustained(pulse.action_s, hertz) for pulse in self._up_pulses)

    async def act(self, observation: Observation, proto: str = "local") -> Reply:
        """The action for this observation, or `RefusedError`. Cancelling takes it out of its replica's queue."""
        robot = observation.robot
        try:
            self._check(observation)
            replica = self._places.place(robot, busy=self._under_way[robot] > 0)
            if replica is None:
                raise RefusedError(Code.NOT_READY, "no replica is ready: ask /readyz", retry_after_s=1.0)
        except RefusedError as error:
            self._forget_idle(robot)
            raise self._count_refusal(error, proto, robot) from None
        self._under_way[robot] += 1
        try:
            reply = await self._ask(replica, observation)
        except RefusedError as error:
            raise self._count_refusal(error, proto, robot) from None
        except asyncio.CancelledError:
            self.metrics.requests.labels(proto, "CANCELLED").inc()
            self.metrics.dropped.labels("disconnect").inc()
            raise
        finally:
            self._under_way[robot] -= 1
            self._forget_idle(robot)
        self.metrics.answered(proto, reply.queue_ms / 1e3, reply.infer_ms / 1e3, reply.age_ms / 1e3)
        for watcher in self.watchers:
            watcher.answered(observation, reply)
        return reply

    def reset(self, robot: str) -> None:
        """An episode begins: the robot's drafts are forgotten."""
        at = self._places.at(robot)
        if at is not None:
            self._handles[at].reset(robot)
        for watcher in self.watchers:
            watcher.reset(robot)

    def leave(self, robot: str) -> None:
        """The robot is gone: what it has queued is cancelled, what is kept for it is dropped."""
        at = self._places.at(robot)
        if at is not None:
            self._handles[at].leave(robot, next(self._numbers))
        self._places.leave(robot)
        for watcher in self.watchers:
            watcher.left(robot)

    def refused(self, error: RefusedError, proto: str = "local") -> RefusedError:
        """What a front end refused by itself: counted, logged, and given a request id."""
        return self._count_refusal(error, proto)

    async def drain(self, seconds: float) -> None:
        """Refuse what waits and whatever comes; let what runs finish, for `seconds` at most; end the replicas."""
        if self._ended is None:
            self._ended = State.DRAINING
        draining = [asyncio.ensure_future(handle.drain(seconds)) for handle in self._handles.values()]
        if draining:
            await asyncio.wait(draining, timeout=seconds)
            for each in draining:
                each.cancel()
            await asyncio.gather(*draining, return_exceptions=True)
        await self._end_keepers()

    @property
    def _up_pulses(self) -> list[Pulse]:
        return [self._pulses[index] for index in self._handles]

    @property
    def _known(self) -> Facts:
        if self._facts is None:
            raise RefusedError(Code.NOT_READY, "the policy is being loaded: ask /readyz how far it is")
        return self._facts

    def _check(self, observation: Observation) -> None:
        if self.state is State.DRAINING:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is shutting down: connect again", retry_after_s=1.0)
        if not self.ready:
            raise RefusedError(Code.NOT_READY, "no replica is ready: ask /readyz", retry_after_s=1.0)
        check_observation(observation, self.options.limits, self._known.keys)

    async def _ask(self, replica: int, observation: Observation) -> Reply:
        """One replica's reply, its times by this process' clock; RefusedError for anything else."""
        handle, deadline, elapsed = self._handles[replica], observation.deadline_ms, _elapsed_ms(observation)
        asked = Asked(observation, elapsed, next(self._numbers))
        left_s = None if deadline is None else max(0.0, deadline - elapsed) / 1e3
        try:
            answer = await asyncio.wait_for(handle.act(asked), left_s)
        except asyncio.CancelledError:
            handle.cancel(asked.number)
            raise
        except asyncio.TimeoutError:
            handle.cancel(asked.number)
            raise RefusedError(Code.DEADLINE, f"not ready within {deadline:.0f} ms") from None
        except LostError as error:
            self._take_down(replica, handle, error)
            raise RefusedError(Code.ENGINE, LOST) from None
        except Exception as error:
            log.error("replica %d", replica, exc_info=error)
            raise RefusedError(Code.ENGINE, "the engine failed on this observation; the server's log has why") from None
        if isinstance(answer, Refused):
            raise answer.error()
        if (answer.robot, answer.observation_id) != (observation.robot, observation.observation_id):
            raise RefusedError(Code.ENGINE, "the replica answered another observation than it was asked")
        elapsed = _elapsed_ms(observation)
        if deadline is not None and elapsed > deadline:
            raise RefusedError(Code.DEADLINE, f"ready after {elapsed:.0f} ms, asked for within {deadline:.0f} ms")
        age = (observation.age_ms or 0.0) + elapsed
        longest = answer.valid_for_ms + answer.age_ms if answer.valid_for_ms else 0.0  # the replica's, by its speed
        queue_ms = max(0.0, elapsed - answer.infer_ms)
        valid, received = max(0.0, longest - age), observation.received_ns
        return replace(answer, age_ms=age, valid_for_ms=valid, queue_ms=queue_ms, received_ns=received)

    def _count_refusal(self, error: RefusedError, proto: str, robot: str | None = None) -> RefusedError:
        error.request_id = error.request_id or f"{self._ids}-{next(self._count):x}"
        self.metrics.refused(proto, error.code)
        if robot is not None and len(robot) <= self.options.limits.robot:
            for watcher in self.watchers:
                watcher.refused(robot, error.code)
        log.debug("%s: %s", error.code.value, error.detail, extra={"request_id": error.request_id, "proto": proto})
        return error

    def _forget_idle(self, robot: str) -> None:
        if self._under_way[robot] <= 0:
            del self._under_way[robot]

    def _report(self, on_progress: OnProgress | None, replicas: int) -> None:
        """Loading is as far as the slowest replica."""
        pulses = list(self._pulses.values())
        slowest = min(pulses, key=lambda pulse: pulse.fraction) if len(pulses) == replicas else None
        if slowest is not None and slowest.fraction > self.progress.fraction:
            self.progress = Progress(slowest.stage, slowest.fraction)
            if on_progress is not None:
                on_progress(slowest.stage, slowest.fraction)

    async def _keep(self, index: int, directory: Path, choices: Choices, first: asyncio.Future[Facts]) -> None:
        """One replica's life, again and again."""
        delay = RESTART_S
        while True:
            why: Exception
            try:
                with self._replica(index) as handle:
                    facts = await self._bring_up(index, handle, directory, choices)
                    self._raise_up(index, handle, facts)
                    delay = RESTART_S
                    if not first.done():
                        first.set_result(facts)
                    why = await self._watch(index, handle)
            except (LostError, EdgeVLAError) as error:
                why = error
            except Exception as error:  # whatever it is: no start and no robot may wait for this replica for ever
                log.error("replica %d: a fault of edge-vla", index, exc_info=error)
                why = BackendError(f"replica {index}: {type(error).__name__}: {error}; the log has where")
            if not first.done():
                first.set_exception(why if isinstance(why, EdgeVLAError) else BackendError(f"replica {index}: {why}"))
                return
            log.error("replica %d is lost and is started again in %.1f s: %s", index, delay, why)
            self._give_up()
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_RESTART_S)

    @contextlib.contextmanager
    def _replica(self, index: int) -> Iterator[Handle]:
        """A new one, which ends with the block."""
        handle = self._cluster.replica(self.options)
        try:
            yield handle
        finally:
            self._take_down(index, handle, None)
            handle.kill()

    async def _bring_up(self, index: int, handle: Handle, directory: Path, choices: Choices) -> Facts:
        """Start a replica, and follow it. EdgeVLAError or LostError where it does not start."""
        starting = asyncio.ensure_future(handle.start(str(directory), choices))
        try:
            while not starting.done():
                self._pulses[index] = await handle.pulse()  # the first comes when the process is there
                await asyncio.wait({starting}, timeout=PULSE_S)
            facts = await starting
            self._pulses[index] = await handle.pulse()
        finally:
            starting.cancel()
        if isinstance(facts, Failed):
            raise facts.exception()
        known = facts if self._facts is None else self._facts
        if facts.metadata != known.metadata:
            got, expected = facts.metadata, known.metadata
            raise BackendError(
                f"replica {index} found {got.artifact} ({got.version}) in {directory}, another found "
                f"{expected.artifact} ({expected.version}): every machine needs the same artifact and edge-vla"
            )
        return facts

    def _raise_up(self, index: int, handle: Handle, facts: Facts) -> None:
        if self._facts is None:
            for note in facts.notes:
                warnings.warn(note, EdgeVLAWarning, 2)
        self._facts = self._facts or facts
        self._handles[index] = handle
        self._places.raise_up(index)

    async def _watch(self, index: int, handle: Handle) -> Exception:
        """Why a replica that was up is so no more."""
        while True:
            await asyncio.sleep(PULSE_S)
            if self._handles.get(index) is not handle:
                return LostError("its process ended")
            try:
                pulse = await asyncio.wait_for(handle.pulse(), SILENT_S)
            except asyncio.TimeoutError:
                return LostError(f"no pulse for {SILENT_S:.0f} s")
            if not pulse.alive:
                return LostError("its device failed, or does not come back from an action")
            self._pulses[index] = pulse

    def _take_down(self, index: int, handle: Handle, error: Exception | None) -> None:
        if self._handles.get(index) is not handle:
            return
        if error is not None:
            log.error("replica %d: %s", index, error)
        del self._handles[index]
        self._pulses.pop(index, None)
        self._places.take_down(index)
        if not self._handles:
            self._down_since = time.monotonic()

    def _give_up(self) -> None:
        """Where no replica has come back for long, a supervisor may do better."""
        if not self._handles and time.monotonic() - self._down_since > DOWN_S:
            self._ended = State.FAILED
            self.error = DeviceLostError(f"no replica has come up for {DOWN_S:.0f} s; the log says why each is lost")
            self.lost.set()

    async def _end_keepers(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._keepers, return_exceptions=True)


def _elapsed_ms(observation: Observation) -> float:
    """Since its last byte came."""
    return (time.monotonic_ns() - observation.received_ns) / 1e6
