"""The server's middle: observations in, actions or refusals out. Owns the policy, in one thread off the event loop.

A robot's drafts live in a `Session` under its name. No exception's text reaches a client: the log has it, under the
request's id. Knows no wire format.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import torch

from edge_vla.errors import DeviceLostError
from edge_vla.runtime import Action, Session
from edge_vla.serve.activity import Activity, Watcher
from edge_vla.serve.cameras import Cameras
from edge_vla.serve.checks import ActionRange, act_within, explain, instruction_tokens
from edge_vla.serve.engine import EngineThread, Outcome, settle
from edge_vla.serve.limits import Limits, check_observation
from edge_vla.serve.loading import Choices, OnProgress, Served, open_policy
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply
from edge_vla.serve.metrics import Metrics
from edge_vla.serve.pace import Slo, SloGuard, sustained
from edge_vla.serve.scheduler import NEVER, Refusal, Scheduler, Ticket

log = logging.getLogger("edge_vla.serve")
STALL_S: Final = 10.0  # an action that takes longer is a device that hangs
FRESH_MS: Final = 500.0  # how old an image may be when its action starts, unless the policy is slower
FRESH_ACTIONS: Final = 4  # of the policy's own
INSTRUCTIONS: Final = 256  # whose length in tokens is kept


class State(str, Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Progress:
    """How far loading is: a stage of `loading.STAGES`, and the share that is done."""

    stage: str
    fraction: float


@dataclass(frozen=True)
class HostOptions:
    """How observations are served. `valid_ms`: an image's greatest age when its action starts; None: by its speed.

    `reject_frozen`: from which repeat on an image that equals its robot's last one is refused.
    `instructions` are warmed before the server is ready, so that the first action for one does not wait.
    """

    limits: Limits = field(default_factory=Limits)
    slo: Slo | None = None
    valid_ms: float | None = None
    instructions: Sequence[str] = ()
    reject_frozen: int | None = None


@dataclass(eq=False)
class _Waiting:
    """An observation under way: who asked, what answers it, and the timer of its deadline."""

    observation: Observation
    proto: str
    request_id: str
    future: asyncio.Future[Reply]
    timer: asyncio.TimerHandle | None = None


class Host:
    """Answers through `act`, once `start` is done. Everything but the policy itself runs on the event loop."""

    def __init__(self, options: HostOptions | None = None, metrics: Metrics | None = None) -> None:
        self.options = options or HostOptions()
        self.metrics = metrics or Metrics()
        self.activity = Activity(time.monotonic, self.options.limits.robots)
        self._cameras = Cameras(self.metrics, self.options.limits.robots, self.options.reject_frozen)
        self.watchers: list[Watcher] = [self.activity, self._cameras]
        self.state, self.progress = State.LOADING, Progress("verify", 0.0)
        self.lost = asyncio.Event()  # the device, for good
        self.error: BaseException | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._engine = EngineThread()
        self._served: Served | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._keys: dict[str, str] = {}
        self._ranges: dict[str, ActionRange] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._tokens: Callable[[str], int] = len  # until there is a tokenizer
        self._ids, self._count = secrets.token_hex(3), 0
        guard = None if self.options.slo is None else SloGuard(self.options.slo)
        self.scheduler = Scheduler[_Waiting](time.monotonic, 1.0, self.options.limits.robots, guard)
        self.metrics.depth.set_function(lambda: self.scheduler.depth)
        self.metrics.inflight.set_function(lambda: self.scheduler.running is not None)
        self.metrics.sessions.set_function(lambda: len(self._sessions))

    async def start(self, directory: Path, choices: Choices, on_progress: OnProgress | None = None) -> Served:
        """Load, warm, replay, measure; ready after it. Raises what `open_policy` raises, and then is FAILED."""
        future: asyncio.Future[Served] = asyncio.get_running_loop().create_future()

        def report(stage: str, fraction: float) -> None:
            self._engine.say(partial(setattr, self, "progress", Progress(stage, fraction)))
            if on_progress is not None:
                on_progress(stage, fraction)

        work = partial(open_policy, directory, choices, self.options.limits, report, self.options.instructions)
        self._engine.run(work, partial(settle, future))
        try:
            served = await future
        except BaseException as error:
            self.state, self.error = State.FAILED, error
            raise
        self.serve(served)
        return served

    def serve(self, served: Served) -> None:
        """Answer with this policy from now on."""
        self._served = served
        self._keys = dict.fromkeys(served.metadata.unnorm_keys, "") | dict(served.policy.config.statistics.unsound)
        self._ranges = {key: ActionRange.of(known) for key, known in served.policy.config.statistics.items()}
        self._tokens = lru_cache(INSTRUCTIONS)(partial(instruction_tokens, served.policy))
        self.scheduler.service.mean = served.service_s
        if served.policy.network.device.type == "cuda":
            self.metrics.memory.set_function(partial(torch.cuda.memory_allocated, served.policy.network.device))
        self.metrics.model.labels(served.metadata.artifact, str(served.bits)).set(1)
        self.metrics.ready.set(1)
        self.state = State.READY

    @property
    def served(self) -> Served:
        if self._served is None:
            raise RefusedError(Code.NOT_READY, "the policy is being loaded: ask /readyz how far it is")
        return self._served

    @property
    def metadata(self) -> Metadata:
        return self.served.metadata

    @property
    def ready(self) -> bool:
        return self.state is State.READY and not self.stalled

    @property
    def stalled(self) -> bool:
        """Whether the device has not come back from an action for far longer than one takes."""
        since = self._engine.busy_since
        slow = max(STALL_S, 20 * self.scheduler.service.mean)
        return self._served is not None and since is not None and time.monotonic() - since > slow

    @property
    def valid_ms(self) -> float:
        """The greatest age of an image whose action may still be started."""
        return self.options.valid_ms or max(FRESH_MS, FRESH_ACTIONS * 1e3 * self.scheduler.service.mean)

    @property
    def action_s(self) -> float:
        """What an action takes."""
        return self.scheduler.service.mean

    @property
    def depth(self) -> int:
        """Observations that wait."""
        return self.scheduler.depth

    def sustained(self, hertz: float) -> int:
        """How many robots that ask `hertz` times a second are served with bounded waits."""
        return sustained(self.action_s, hertz)

    async def act(self, observation: Observation, proto: str = "local") -> Reply:
        """The action for this observation, or `RefusedError`. Cancelling takes it out of the queue.

        What runs already runs on, and its action is thrown away.
        """
        request_id = self.request_id()
        try:
            self._check(observation)
        except RefusedError as error:
            error.request_id = request_id
            raise self._count_refusal(error, proto, observation.robot) from None
        waiting = _Waiting(observation, proto, request_id, asyncio.get_running_loop().create_future())
        received = observation.received_ns / 1e9
        deadline = NEVER if observation.deadline_ms is None else received + observation.deadline_ms / 1e3
        ticket = Ticket(observation.robot, waiting, received, deadline)
        self._refuse(self.scheduler.submit(ticket))
        self._pump()
        if deadline < NEVER and not waiting.future.done():
            left = max(0.0, deadline - time.monotonic())
            waiting.timer = asyncio.get_running_loop().call_later(left, self._expire, waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self.scheduler.cancel(ticket)
            self.metrics.requests.labels(proto, "CANCELLED").inc()
            self.metrics.dropped.labels("disconnect").inc()
            raise
        finally:
            if waiting.timer is not None:
                waiting.timer.cancel()

    def reset(self, robot: str) -> None:
        """An episode begins: the robot's drafts are forgotten."""
        if robot in self._sessions:
            self._sessions[robot].reset()
        for watcher in self.watchers:
            watcher.reset(robot)

    def leave(self, robot: str) -> None:
        """The robot is gone: what it has queued is cancelled, what is kept for it is dropped."""
        ticket = self.scheduler.leave(robot)
        if ticket is not None and not ticket.what.future.done():
            gone = RefusedError(Code.SUPERSEDED, "the robot left, or connected anew, before this one was started")
            ticket.what.future.set_exception(self._explain(gone, ticket.what))
            ticket.what.future.exception()  # its task may have been cancelled: then nobody looks
        self._sessions.pop(robot, None)
        for watcher in self.watchers:
            watcher.left(robot)

    def refused(self, error: RefusedError, proto: str = "local") -> RefusedError:
        """What a front end refused by itself: counted, logged, and given a request id."""
        error.request_id = error.request_id or self.request_id()
        return self._count_refusal(error, proto)

    def request_id(self) -> str:
        self._count += 1
        return f"{self._ids}-{self._count:x}"

    async def drain(self, seconds: float) -> None:
        """Refuse what waits and whatever comes; let what runs finish, for `seconds` at most."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        self.metrics.ready.set(0)
        self._refuse(self.scheduler.drain())
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            log.warning("an action did not finish within %.1f s of the drain", seconds)
        self._engine.stop()

    def _check(self, observation: Observation) -> None:
        if self.state is State.DRAINING:
            raise RefusedError(Code.SHUTTING_DOWN, "the server is shutting down: connect again", retry_after_s=1.0)
        if not self.ready:
            detail = "the policy is being loaded" if self.state is State.LOADING else "the device has failed"
            raise RefusedError(Code.NOT_READY, f"{detail}: ask /readyz", retry_after_s=1.0)
        limits = self.options.limits
        check_observation(observation, limits, self._keys)
        self._cameras.check(observation)
        tokens = self._tokens(observation.instruction)
        if tokens > limits.instruction_tokens:
            raise RefusedError(
                Code.INSTRUCTION,
                f"an instruction may have {limits.instruction_tokens} tokens, got {tokens}: shorten it",
            )

    def _pump(self) -> None:
        """Give the device its next observation, if it is free."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self.scheduler.running is None and self.state is State.READY:
            ticket, refused = self.scheduler.take()
            self._refuse(refused)
            if ticket is not None:
                self._idle.clear()
                began = time.monotonic()
                asked = ticket.what.observation
                session, key = self._session(asked.robot), asked.unnorm_key or self.served.key
                work = partial(act_within, session, asked.image, asked.instruction, key, self._ranges)
                self._engine.run(work, partial(self._done, ticket, began))
            elif self.scheduler.wake < NEVER:
                delay = max(0.0, self.scheduler.wake - time.monotonic())
                self._wake = asyncio.get_running_loop().call_later(delay, self._pump)

    def _session(self, robot: str) -> Session:
        """The robot's own, in the place of the one that was used longest ago where all places are taken."""
        session = self._sessions.pop(robot, None) or self.served.policy.session()
        self._sessions[robot] = session
        while len(self._sessions) > self.options.limits.robots:
            self._sessions.popitem(last=False)
        return session

    def _done(self, ticket: Ticket[_Waiting], began: float, outcome: Outcome[Action]) -> None:
        """The robot has its answer first, then the device its next observation; figures can wait for both."""
        self.scheduler.finish(ticket, outcome.seconds)
        self._idle.set()
        waiting, reply = ticket.what, None
        error = outcome.error or self._late(waiting)
        if isinstance(error, DeviceLostError):
            self._lose(error)
        if not waiting.future.done():
            if error is not None:
                waiting.future.set_exception(self._explain(error, waiting))
            elif outcome.value is not None:
                reply = self._reply(waiting, outcome.value, began - ticket.received, outcome.seconds)
                waiting.future.set_result(reply)
        elif error is not None:
            self._explain(error, waiting)
        self._pump()
        if outcome.value is not None:
            asyncio.get_running_loop().call_soon(self._note, waiting, outcome.value, reply)

    def _late(self, waiting: _Waiting) -> RefusedError | None:
        """Why an action that is ready is of no use any more."""
        deadline = waiting.observation.deadline_ms
        elapsed = 1e3 * (time.monotonic() - waiting.observation.received_ns / 1e9)
        if deadline is None or elapsed <= deadline:
            return None
        return RefusedError(Code.DEADLINE, f"ready after {elapsed:.0f} ms, asked for within {deadline:.0f} ms")

    def _reply(self, waiting: _Waiting, action: Action, queue_s: float, infer_s: float) -> Reply:
        observation = waiting.observation
        age = (observation.age_ms or 0.0) + (time.monotonic_ns() - observation.received_ns) / 1e6
        return Reply(
            action=action.values,
            tokens=action.tokens,
            margins=action.margins,
            unnorm_key=action.unnorm_key,
            robot=observation.robot,
            observation_id=observation.observation_id,
            request_id=waiting.request_id,
            age_ms=age,
            valid_for_ms=max(0.0, self.valid_ms - age),
            queue_ms=1e3 * queue_s,
            infer_ms=1e3 * infer_s,
            artifact=self.metadata.artifact,
            received_ns=observation.received_ns,
        )

    def _note(self, waiting: _Waiting, action: Action, reply: Reply | None) -> None:
        self.metrics.invalid_tokens.inc(sum(action.clipped))
        if reply is None:  # nobody waited for it any more
            return
        self.metrics.answered(waiting.proto, reply.queue_ms / 1e3, reply.infer_ms / 1e3, reply.age_ms / 1e3)
        for watcher in self.watchers:
            watcher.answered(waiting.observation, reply)

    def _explain(self, error: BaseException, waiting: _Waiting) -> RefusedError:
        """What a client is told of an error; the log has the error itself."""
        refusal = explain(error)
        refusal.request_id = waiting.request_id
        if refusal.code in (Code.ENGINE, Code.NUMERIC):
            log.error("%s", refusal.code.value, exc_info=error, extra={"request_id": waiting.request_id})
        return self._count_refusal(refusal, waiting.proto, waiting.observation.robot)

    def _lose(self, error: DeviceLostError) -> None:
        """Nothing in this process can use the device again: not ready, and the queue is answered."""
        self.state, self.error = State.FAILED, error
        self.metrics.ready.set(0)
        self._refuse(self.scheduler.drain())
        self.lost.set()

    def _expire(self, waiting: _Waiting) -> None:
        """A deadline has passed: in the queue, or on the device, whose action is thrown away."""
        self._refuse(self.scheduler.expire())
        if not waiting.future.done():
            late = RefusedError(Code.DEADLINE, f"not ready within {waiting.observation.deadline_ms:.0f} ms")
            waiting.future.set_exception(self._explain(late, waiting))

    def _refuse(self, refusals: list[Refusal[_Waiting]]) -> None:
        for refusal in refusals:
            waiting = refusal.ticket.what
            if waiting.future.done():
                continue
            after = refusal.retry_after_s
            error = RefusedError(
                refusal.code,
                refusal.detail,
                request_id=waiting.request_id,
                retry_after_s=None if after is None else math.ceil(1e3 * after) / 1e3,
            )
            waiting.future.set_exception(self._count_refusal(error, waiting.proto, waiting.observation.robot))

    def _count_refusal(self, error: RefusedError, proto: str, robot: str | None = None) -> RefusedError:
        self.metrics.refused(proto, error.code)
        if robot is not None and len(robot) <= self.options.limits.robot:
            for watcher in self.watchers:
                watcher.refused(robot, error.code)
        log.debug("%s: %s", error.code.value, error.detail, extra={"request_id": error.request_id, "proto": proto})
        return error
