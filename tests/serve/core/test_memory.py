"""A server holds no more after twenty thousand observations than after two thousand, whatever its robots are called.

The policy acts once; its action is given again, for it is what stands around it that could grow.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path

import msgpack
import pytest

from edge_vla.serve.activity import KEPT
from edge_vla.serve.codec.values import Value
from edge_vla.serve.counted import Counted
from edge_vla.serve.host import Host, HostOptions
from edge_vla.serve.limits import Limits
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Observation, RefusedError
from edge_vla.serve.native import NativeDialogue
from edge_vla.serve.record import ROBOTS, Recorder, RecordOptions
from tests.serve.core.conftest import WORDS, Picture, picture

FEW, MANY = 2_000, 20_000
BOUND = 64 << 10  # bytes: what Python's own free lists and a few objects under way make of it
OPTIONS = HostOptions(Limits(robots=32), valid_ms=30_000)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@cache
def seen() -> Picture:
    return picture(0)


def hosted(artifact: Path, use: Callable[[Host], Awaitable[None]]) -> None:
    """`use` a host whose policy gives its first action again."""

    async def run() -> None:
        host = Host(OPTIONS)
        served = await host.start(artifact, Choices())
        action = served.policy.act(seen(), WORDS)
        served.policy.act = lambda *_, **__: action  # type: ignore[method-assign]
        try:
            await use(host)
        finally:
            await host.drain(5)

    asyncio.run(run())


def message(number: int) -> bytes:
    image = seen()
    sent = {"type": "observation", "id": number, "image": image.tobytes(), "shape": list(image.shape)}
    packed: bytes = msgpack.packb({**sent, "instruction": WORDS, "deadline_ms": 30_000})
    return packed


@pytest.mark.usefixtures("traced")
def test_eight_robots_for_twenty_thousand_observations(artifact: Path) -> None:
    async def use(host: Host) -> None:
        service, frame = Counted(host, "native"), message(1)
        talks = [NativeDialogue(service, Limits(), f"arm-{i}") for i in range(8)]

        async def drive(talk: NativeDialogue, count: int) -> None:
            for step in range(count):
                if step % 10 == 9:
                    with pytest.raises(RefusedError):
                        await service.act(asked(talk.robot, ""))
                asking: Value = talk.decode(frame)
                assert await talk.answer(asking, time.monotonic_ns())

        async def drive_all(count: int) -> int:
            await asyncio.gather(*(drive(talk, count // 8) for talk in talks))
            return held()

        few = await drive_all(FEW)
        many = await drive_all(MANY)
        assert many - few <= BOUND
        assert host.activity.view()[0].latencies_ms
        assert MANY / 8 > KEPT, "more than is kept: the oldest make place"

    hosted(artifact, use)


@pytest.mark.usefixtures("traced")
def test_a_client_that_invents_names_and_data_sets(artifact: Path) -> None:
    async def use(host: Host) -> None:
        service = Counted(host, "rest")

        async def invent(first: int, count: int) -> tuple[int, int]:
            for i in range(first, first + count):
                await service.act(asked(f"invented-{i}", WORDS))
                with pytest.raises(RefusedError):
                    await service.act(asked(f"invented-{i}", WORDS, unnorm_key=f"key-{i}"))
                with pytest.raises(RefusedError):
                    await service.act(asked(f"invented-{i}", " " * (i % 40)))
            return held(), len(host.metrics.text().splitlines())

        few = await invent(0, 400)
        many = await invent(400, 4_000)
        assert many[0] - few[0] <= BOUND
        assert many[1] == few[1]
        assert len(host.activity.view()) == host.scheduler.known == OPTIONS.limits.robots

    hosted(artifact, use)


@pytest.mark.usefixtures("traced")
def test_a_recorder_counts_episodes_of_no_more_robots_than_it_may(artifact: Path, tmp_path: Path) -> None:
    async def use(host: Host) -> None:
        reply = await host.act(asked("arm", WORDS))
        recorder = Recorder(RecordOptions(tmp_path / "day", most_bytes=1))

        def invent(first: int, count: int) -> int:
            for i in range(first, first + count):
                recorder.answered(asked(f"invented-{i}", WORDS), reply)
                recorder.left(f"invented-{i}" if i % 2 else "nobody")
            return held()

        few = invent(0, 2 * ROBOTS)
        assert invent(2 * ROBOTS, 8 * ROBOTS) - few <= BOUND
        recorder.close()

    hosted(artifact, use)


def asked(robot: str, words: str, unnorm_key: str | None = None) -> Observation:
    return Observation(robot, seen(), words, time.monotonic_ns(), unnorm_key)
