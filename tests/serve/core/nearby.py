"""Replicas of a fleet in this process: they die, freeze, lie or fail as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edge_vla.serve.handles import LostError
from edge_vla.serve.host import HostOptions
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Reply
from edge_vla.serve.replica import Asked, Facts, Failed, Pulse, Refused, Replica

T = TypeVar("T")


class Near:
    """A replica in this process that can be killed, frozen, or made to lie."""

    def __init__(self, options: HostOptions) -> None:
        self.replica = Replica(options, None)
        self.dead = asyncio.Event()
        self.frozen = False
        self.forge: Callable[[Reply], Reply] = lambda reply: reply
        self.pulsed: Callable[[Pulse], Pulse] = lambda pulse: pulse
        self.served: list[str] = []
        self.cancelled: list[int] = []

    async def _reach(self, work: Awaitable[T]) -> T:
        """As over a network: it raises as soon as the other end is dead."""
        task, dead = asyncio.ensure_future(work), asyncio.ensure_future(self.dead.wait())
        await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            task.cancel()
            raise LostError("it was killed")
        dead.cancel()
        return await task

    async def start(self, directory: str, choices: Choices) -> Facts | Failed:
        return await self._reach(self.replica.start(directory, choices))

    async def act(self, asked: Asked) -> Reply | Refused:
        self.served.append(asked.observation.robot)
        if self.frozen:
            await self._reach(asyncio.sleep(60))
        answer = await self._reach(self.replica.act(asked))
        return self.forge(answer) if isinstance(answer, Reply) else answer

    async def pulse(self) -> Pulse:
        if self.frozen:
            await self._reach(asyncio.sleep(60))
        return self.pulsed(await self._reach(self.replica.pulse()))

    async def drain(self, seconds: float) -> None:
        await self._reach(self.replica.drain(seconds))

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self._say(self.replica.cancel(number))

    def reset(self, robot: str) -> None:
        self._say(self.replica.reset(robot))

    def leave(self, robot: str, number: int) -> None:
        self._say(self.replica.leave(robot, number))

    def kill(self) -> None:
        self.dead.set()

    def _say(self, work: Awaitable[None]) -> None:
        self._said = asyncio.ensure_future(work)


class Nearby:
    """Two of them, and whatever is made in their place."""

    def __init__(self, count: int = 2) -> None:
        self.count, self.made = count, list[Near]()

    def open(self) -> int:
        return self.count

    def replica(self, options: HostOptions) -> Near:
        self.made.append(Near(options))
        return self.made[-1]

    async def close(self) -> None:
        """A process that dies ends its threads; here it has to be asked."""
        for near in self.made:
            await near.replica.drain(1)


class Second(Nearby):
    """Its first replica is as any, those after it are of the given kind."""

    def __init__(self, kind: Callable[[HostOptions], Near]) -> None:
        super().__init__()
        self.kind = kind

    def replica(self, options: HostOptions) -> Near:
        self.made.append((self.kind if self.made else Near)(options))
        return self.made[-1]
