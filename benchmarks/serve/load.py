"""Robots that ask at the same time, over our WebSocket, from one event loop; and what their replies had wrong.

A robot with a rate sends on its beat whether or not it was answered, as a camera does: the newest wins. One without a
rate asks again as soon as it was answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.serve.frames import Frame
from benchmarks.serve.results import Load, RobotLoad, Spread
from benchmarks.serve.wire import Answer, answer, observation

OPEN_S = 20.0
LAST_S = 5.0  # for the last replies
JITTER = 0.05  # of a beat


@dataclass
class Robot:
    """One robot and what it saw. `sent` holds frame and time of each observation that is not answered yet."""

    name: str
    frames: Sequence[Frame]
    longest_ms: float  # an image may be so old when its action is ready, and no older
    round_trips_ms: list[float] = field(default_factory=list)
    ages_ms: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    sent: dict[int, tuple[Frame, float]] = field(default_factory=dict)
    newest: int = 0
    answered: int = 0
    crossed: int = 0
    stale: int = 0

    async def send(self, socket: ClientConnection) -> None:
        self.newest += 1
        frame = self.frames[self.newest % len(self.frames)]
        self.sent[self.newest] = (frame, time.perf_counter())
        await socket.send(observation(frame.image, frame.instruction, self.newest))

    def hear(self, said: Answer) -> None:
        number = said.observation_id
        sent = self.sent.pop(number, None) if isinstance(number, int) else None
        if sent is None:  # answered twice, or never asked
            self.crossed += 1
        elif said.code is not None:
            self.refused[said.code] += 1
        else:
            frame, began = sent
            self.round_trips_ms.append(1e3 * (time.perf_counter() - began))
            self.ages_ms.append(said.age_ms)
            self.crossed += said.robot != self.name or said.tokens != frame.tokens
            late = isinstance(number, int) and number < self.answered  # an older image than one already acted on
            usable = said.valid_for_ms > 0  # 0: the action came too late, and says so
            self.stale += late or (usable and said.age_ms + said.valid_for_ms > self.longest_ms + 1e-6)
            self.answered = max(self.answered, number if isinstance(number, int) else 0)

    def load(self, seconds: float) -> RobotLoad:
        return RobotLoad(
            answered=len(self.round_trips_ms),
            actions_per_s=round(len(self.round_trips_ms) / seconds, 3),
            refused=dict(self.refused),
            round_trip=Spread.of(self.round_trips_ms),
            age=Spread.of(self.ages_ms),
        )


async def _on_a_beat(robot: Robot, socket: ClientConnection, until: float, hertz: float) -> None:
    async def listen() -> None:
        async for frame in socket:
            robot.hear(answer(frame))

    listening = asyncio.create_task(listen())
    chance = random.Random(robot.name)
    beat = time.perf_counter() + chance.random() / hertz
    while beat < until:
        await asyncio.sleep(max(0.0, beat - time.perf_counter()))
        await robot.send(socket)
        beat += (1 + JITTER * (chance.random() - 0.5)) / hertz
    last = time.perf_counter() + LAST_S
    while robot.sent and time.perf_counter() < last:
        await asyncio.sleep(0.01)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def _back_to_back(robot: Robot, socket: ClientConnection, until: float) -> None:
    while time.perf_counter() < until:
        await robot.send(socket)
        robot.hear(answer(await asyncio.wait_for(socket.recv(), OPEN_S)))


async def _drive(robot: Robot, address: str, seconds: float, hertz: float | None) -> None:
    async with connect(f"{address}?robot={robot.name}", compression=None, max_size=None, open_timeout=OPEN_S) as socket:
        await socket.recv()  # the greeting
        until = time.perf_counter() + seconds
        await (_back_to_back(robot, socket, until) if hertz is None else _on_a_beat(robot, socket, until, hertz))


async def run(
    address: str, frames: Sequence[Frame], robots: int, seconds: float, hertz: float | None, longest_ms: float
) -> Load:
    """`frames` are dealt out, so that no two robots see the same picture."""
    driven = [Robot(f"robot-{index}", frames[index::robots], longest_ms) for index in range(robots)]
    await asyncio.gather(*(_drive(robot, address, seconds, hertz) for robot in driven))
    unanswered = sum(len(robot.sent) for robot in driven)
    rates = [len(robot.round_trips_ms) / seconds for robot in driven]
    return Load(
        robots=[robot.load(seconds) for robot in driven],
        seconds=seconds,
        hertz=hertz,
        actions_per_s=round(sum(rates), 3),
        jain=round(jain(rates), 5),
        crossed=sum(robot.crossed for robot in driven),
        stale=sum(robot.stale for robot in driven),
        unanswered=unanswered,
        round_trip=Spread.of([time for robot in driven for time in robot.round_trips_ms]),
        age=Spread.of([age for robot in driven for age in robot.ages_ms]),
    )


def jain(rates: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all get the same, 1/n where one gets all."""
    squares = len(rates) * sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / squares if squares else 0.0
