"""One policy of a fleet, in a process of its own: a `Host` as others call it over a network.

What goes in and comes out is plain values: a refusal is a value here, and a time is how long ago, because the clock of
another machine says nothing. Knows no Ray: `ray_fleet` makes an actor of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_vla import errors
from edge_vla.errors import BackendError, EdgeVLAError
from edge_vla.serve.host import Host, HostOptions, State
from edge_vla.serve.loading import Choices, Served
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply


@dataclass(frozen=True, eq=False)
class Asked:
    """An observation that came `elapsed_ms` ago. `number` rises from one observation of the front to its next."""

    observation: Observation
    elapsed_ms: float
    number: int


@dataclass(frozen=True)
class Refused:
    """A `RefusedError` as a value."""

    code: Code
    detail: str
    request_id: str = ""
    retry_after_s: float | None = None

    def error(self) -> RefusedError:
        return RefusedError(self.code, self.detail, request_id=self.request_id, retry_after_s=self.retry_after_s)


@dataclass(frozen=True)
class Failed:
    """Why a replica did not start: an error of `edge_vla.errors` by its name."""

    error: str
    message: str

    def exception(self) -> EdgeVLAError:
        kind = getattr(errors, self.error, None) if self.error in errors.__all__ else None
        return (kind or BackendError)(self.message)


@dataclass(frozen=True)
class Facts:
    """A replica that is ready. `keys`: the data sets, each with what is wrong with it. `notes`: what it warned of."""

    metadata: Metadata
    key: str
    bits: int
    service_s: float
    keys: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pulse:
    """How a replica is. `alive`: its device answers; `valid_ms`: an image's greatest age when its action starts."""

    alive: bool
    stage: str
    fraction: float
    depth: int
    action_s: float
    valid_ms: float
    pid: int


class Replica:
    """A host and its policy. Every method is called on the process' one event loop."""

    def __init__(self, options: HostOptions, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._options = options
        self._host: Host | None = None
        self._acting: dict[int, asyncio.Future[Reply]] = {}  # by number
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by robot: its newest number, and its arrival

    async def start(self, directory: str, choices: Choices) -> Facts | Failed:
        """Load, warm, replay, measure, as a server alone does."""
        self._host = Host(self._options)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", errors.EdgeVLAWarning)
            try:
                served = await self._host.start(Path(directory), choices)
            except EdgeVLAError as error:
                return Failed(type(error).__name__, str(error))
        notes = [str(one.message) for one in noted if issubclass(one.category, errors.EdgeVLAWarning)]
        return _facts(served, tuple(notes))

    async def act(self, asked: Asked) -> Reply | Refused:
        """The action for this observation."""
        here = asked.observation
        number, last = self._last.get(here.robot, (-1, 0))
        if asked.number < number:  # messages may overtake each other
            return Refused(Code.SUPERSEDED, "a newer observation of this robot came before this one was started")
        received_ns = max(last + 1, time.monotonic_ns() - round(1e6 * asked.elapsed_ms))
        self._note(here.robot, asked.number, received_ns)
        here = dataclasses.replace(here, received_ns=received_ns)
        acting = self._acting[asked.number] = asyncio.ensure_future(self._running.act(here, "fleet"))
        try:
            return await acting
        except RefusedError as error:
            return Refused(error.code, error.detail, error.request_id, error.retry_after_s)
        except asyncio.CancelledError:
            if not acting.cancelled():
                raise
            return Refused(Code.SUPERSEDED, "nobody waits for it any more")
        finally:
            del self._acting[asked.number]

    async def cancel(self, number: int) -> None:
        """Nobody waits for this observation any more."""
        if number in self._acting:
            self._acting[number].cancel()

    def _note(self, robot: str, number: int, received_ns: int) -> None:
        self._last[robot] = (number, received_ns)
        self._last.move_to_end(robot)
        while len(self._last) > self._options.limits.robots:
            self._last.popitem(last=False)

    async def pulse(self) -> Pulse:
        host = self._host
        if host is None:
            return Pulse(True, "verify", 0.0, 0, 0.0, 0.0, os.getpid())
        alive = host.state is not State.FAILED and not host.stalled
        stage, fraction = host.progress.stage, host.progress.fraction
        return Pulse(alive, stage, fraction, host.depth, host.action_s, host.valid_ms, os.getpid())

    async def reset(self, robot: str) -> None:
        self._running.reset(robot)

    async def leave(self, robot: str, number: int) -> None:
        """The robot is gone as of the front's `number`; not if it has come back since."""
        if self._last.get(robot, (-1, 0))[0] <= number:
            self._last.pop(robot, None)
            self._running.leave(robot)

    async def drain(self, seconds: float) -> None:
        if self._host is not None:
            await self._host.drain(seconds)

    @property
    def _running(self) -> Host:
        assert self._host is not None, "start it first"
        return self._host


def _facts(served: Served, notes: tuple[str, ...]) -> Facts:
    keys = dict.fromkeys(served.metadata.unnorm_keys, "") | dict(served.policy.config.statistics.unsound)
    return Facts(served.metadata, served.key, served.bits, served.service_s, keys, notes)
