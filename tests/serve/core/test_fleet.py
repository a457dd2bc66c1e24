"""A fleet of real hosts in this process: one outcome each when replicas die, hang, lie or differ."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from edge_vla.commands.serve import ENGINE, middle_of
from edge_vla.errors import BackendError, DeviceLostError, UsageError
from edge_vla.runtime import Policy
from edge_vla.serve import fleet
from edge_vla.serve.fleet import Fleet
from edge_vla.serve.host import HostOptions
from edge_vla.serve.lifecycle import Callbacks, serve
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Code, Observation, RefusedError, Reply
from edge_vla.serve.replica import Asked, Facts, Failed, Pulse, Refused, Replica
from tests.serve.core.conftest import WORDS, patient, picture
from tests.serve.core.nearby import Near, Nearby, Second

T = TypeVar("T")
OPTIONS = HostOptions(valid_ms=30_000)


def fleeted(artifact: Path, use: Callable[[Fleet, Nearby], Awaitable[T]]) -> T:
    async def run() -> T:
        cluster = Nearby()
        found = Fleet(cluster, OPTIONS)
        await found.start(artifact, Choices())
        try:
            return await use(found, cluster)
        finally:
            await found.drain(5)
            await cluster.close()

    return asyncio.run(run())


def observation(robot: str, seed: int = 0, **change: object) -> Observation:
    values: dict[str, object] = {"image": picture(seed), "instruction": WORDS, "received_ns": time.monotonic_ns()}
    return Observation(robot, **(values | change))  # type: ignore[arg-type]


async def outcome(acting: Awaitable[Reply]) -> Reply | RefusedError:
    try:
        return await acting
    except RefusedError as error:
        return error


def code(found: Reply | RefusedError) -> str:
    return "OK" if isinstance(found, Reply) else found.code.value


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


def test_robots_stay_apart_and_get_the_actions_of_one_process(artifact: Path, policy: Policy) -> None:
    async def use(found: Fleet, cluster: Nearby) -> list[Reply]:
        replies = []
        for step in range(3):
            asked = [observation(f"arm-{i}", (i + step) % 4, observation_id=step) for i in range(4)]
            replies += await asyncio.gather(*map(found.act, asked))
        assert [sorted(set(near.served)) for near in cluster.made] == [["arm-0", "arm-2"], ["arm-1", "arm-3"]]
        return replies

    began = time.monotonic_ns()
    replies = fleeted(artifact, use)
    for number, reply in enumerate(replies):
        step, robot = divmod(number, 4)
        action = policy.act(picture((robot + step) % 4), WORDS)
        assert began < reply.received_ns < time.monotonic_ns(), "when it came to the front, not to the replica"
        assert (reply.robot, reply.observation_id) == (f"arm-{robot}", step)
        assert reply.tokens == action.tokens
        np.testing.assert_array_equal(reply.action, action.values)
        assert reply.age_ms >= reply.infer_ms > 0
        assert reply.valid_for_ms == pytest.approx(30_000 - reply.age_ms)


def test_what_a_dead_replica_had_is_answered_lost_and_its_robots_go_on(artifact: Path, policy: Policy) -> None:
    async def use(found: Fleet, cluster: Nearby) -> None:
        asked = [asyncio.ensure_future(outcome(found.act(observation(f"arm-{i}", i)))) for i in range(6)]
        await asyncio.sleep(0)
        await until(lambda: sum(len(near.served) for near in cluster.made) == 6)
        cluster.made[0].kill()
        results = await asyncio.wait_for(asyncio.gather(*asked), 20)
        dead = set(cluster.made[0].served)
        for i, result in enumerate(results):
            if isinstance(result, RefusedError):
                assert f"arm-{i}" in dead
                assert (result.code, result.detail) == (Code.ENGINE, fleet.LOST)
                assert result.request_id
            else:
                assert result.tokens == policy.act(picture(i), WORDS).tokens
        lost = [result for result in results if isinstance(result, RefusedError)]
        assert lost, "it was killed before it answered"
        again = await asyncio.gather(*(found.act(observation(f"arm-{i}", i + 1)) for i in range(6)))
        assert [reply.tokens for reply in again] == [policy.act(picture(i + 1), WORDS).tokens for i in range(6)]
        await until(lambda: len(cluster.made) == 3 and "edgevla_replicas 2.0" in found.metrics.text().decode())
        await asyncio.gather(*(found.act(observation(f"arm-{i}")) for i in range(6)))
        assert len(cluster.made[2].served) == 3, "robots even out again"
        text = found.metrics.text().decode()
        assert f'edgevla_requests_total{{code="E_ENGINE",proto="local"}} {float(len(lost))}' in text

    fleeted(artifact, use)


def test_the_newest_observation_of_a_robot_wins_as_with_one_policy(artifact: Path) -> None:
    async def use(found: Fleet, cluster: Nearby) -> list[str]:
        asked = [outcome(found.act(observation("arm", i % 3, observation_id=i))) for i in range(12)]
        results = await asyncio.gather(*asked)
        assert [len(near.served) for near in cluster.made] == [12, 0], "all at one replica"
        answered = [result.observation_id for result in results if isinstance(result, Reply)]
        assert answered[-1] == 11
        return [code(result) for result in results]

    codes = fleeted(artifact, use)
    assert set(codes) == {"OK", "E_SUPERSEDED"}
    assert codes.count("E_SUPERSEDED") >= 10


def test_a_deadline_ends_the_wait_for_a_replica_that_hangs_and_it_is_replaced(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SILENT_S", 0.2)

    async def use(found: Fleet, cluster: Nearby) -> None:
        cluster.made[0].frozen = True
        late, lost = await asyncio.gather(
            outcome(found.act(observation("arm", deadline_ms=100))),
            outcome(found.act(replace(observation("arm"), observation_id="no deadline"))),
        )
        assert (code(late), code(lost)) == ("E_DEADLINE", "E_ENGINE")
        assert cluster.made[0].cancelled, "the replica is told that nobody waits"
        assert cluster.made[0].dead.is_set()
        assert code(await outcome(found.act(observation("arm")))) == "OK"

    fleeted(artifact, use)


def test_cancelling_takes_an_observation_out_of_its_replica_s_queue(artifact: Path) -> None:
    async def use(found: Fleet, cluster: Nearby) -> None:
        acting = [asyncio.ensure_future(found.act(observation(f"arm-{i}"))) for i in range(8)]
        await until(lambda: sum(len(near.served) for near in cluster.made) == 8)
        cancelled = sum(each.cancel() for each in acting)  # the first may have its answer by now
        await asyncio.gather(*acting, return_exceptions=True)
        assert sum(len(near.cancelled) for near in cluster.made) == cancelled > 1
        await asyncio.sleep(0.05)
        pulses = [await near.pulse() for near in cluster.made]
        assert [pulse.depth for pulse in pulses] == [0, 0]

    fleeted(artifact, use)


@pytest.mark.parametrize("lie", [{"robot": "other"}, {"observation_id": 8}])
def test_an_answer_to_another_observation_is_no_action(artifact: Path, lie: dict[str, str | int]) -> None:
    async def use(found: Fleet, cluster: Nearby) -> Reply | RefusedError:
        cluster.made[0].forge = lambda reply: replace(reply, **lie)  # type: ignore[arg-type]
        return await outcome(found.act(observation("arm", observation_id=7)))

    result = fleeted(artifact, use)
    assert code(result) == "E_ENGINE"


def stopped(cluster: Nearby, artifact: Path, match: str) -> None:
    """Its start ends, within a minute, with a BackendError that says so."""

    async def run() -> None:
        with pytest.raises(BackendError, match=match):
            await asyncio.wait_for(Fleet(cluster, OPTIONS).start(artifact, Choices()), 60)
        await cluster.close()

    asyncio.run(run())


def test_a_replica_of_another_artifact_stops_the_start(artifact: Path) -> None:
    class Other(Near):
        async def start(self, directory: str, choices: Choices) -> Facts | Failed:
            facts = await super().start(directory, choices)
            await asyncio.sleep(1)
            assert isinstance(facts, Facts)
            return replace(facts, metadata=replace(facts.metadata, artifact="feedfacecafe"))

    stopped(Second(Other), artifact, r"replica 1 found feedfacecafe .* every machine needs the same artifact")


def test_a_fault_that_nobody_foresaw_stops_the_start(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A replica's or the cluster's; the log says where it was raised."""

    class Faulty(Near):
        async def start(self, directory: str, choices: Choices) -> Facts | Failed:
            raise AssertionError("out of its mind")

    def refused(options: HostOptions) -> Near:
        raise KeyError("no place")

    stopped(Second(Faulty), artifact, "replica 1: AssertionError: out of its mind; the log has where")
    stopped(Second(refused), artifact, "replica 1: KeyError: 'no place'")
    assert 'raise AssertionError("out of its mind")' in caplog.text


def test_a_fault_that_nobody_foresaw_is_a_replica_lost_and_started_again(artifact: Path) -> None:
    def mad(pulse: Pulse) -> Pulse:
        raise AssertionError("no pulse")

    async def use(found: Fleet, cluster: Nearby) -> None:
        cluster.made[0].pulsed = mad
        await until(lambda: len(cluster.made) == 3 and "edgevla_replicas 2.0" in found.metrics.text().decode())
        assert cluster.made[0].dead.is_set()
        assert code(await outcome(found.act(observation("arm")))) == "OK"

    fleeted(artifact, use)


def test_what_stops_a_replica_stops_the_start_as_what_it_was(tmp_path: Path) -> None:
    async def run() -> Fleet:
        cluster = Nearby()
        found = Fleet(cluster, OPTIONS)
        with pytest.raises(UsageError, match="is not an artifact"):
            await found.start(tmp_path, Choices())
        await cluster.close()
        return found

    found = asyncio.run(run())
    assert (found.state.value, found.ready) == ("failed", False)


def test_a_fleet_that_stays_down_ends_the_server(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "DOWN_S", 0.0)

    async def use(found: Fleet, cluster: Nearby) -> None:
        for near in list(cluster.made):
            near.kill()
        await until(found.lost.is_set)
        assert isinstance(found.error, DeviceLostError)
        assert code(await outcome(found.act(observation("arm")))) == "E_NOT_READY"

    fleeted(artifact, use)


def test_messages_that_overtake_each_other_do_no_harm(artifact: Path) -> None:
    async def run() -> None:
        replica = Replica(OPTIONS, None)
        await replica.start(str(artifact), Choices())
        newer = await replica.act(Asked(observation("arm", 1), 0.0, 5))
        older = await replica.act(Asked(observation("arm", 0), 50.0, 4))
        assert isinstance(newer, Reply)
        assert isinstance(older, Refused)
        assert older.code is Code.SUPERSEDED
        await replica.leave("arm", 4)
        assert isinstance(await replica.act(Asked(observation("arm"), 0.0, 4)), Refused), "it came back since"
        await replica.leave("arm", 6)
        assert isinstance(await replica.act(Asked(observation("arm"), 0.0, 4)), Reply)
        await replica.drain(5)

    asyncio.run(run())


def test_the_same_server_stands_before_a_fleet(artifact: Path) -> None:
    """Its start, its operations, its drain."""

    async def run() -> tuple[str, str]:
        stop, ready = asyncio.Event(), asyncio.Event()
        ports: list[int] = []
        shown = Callbacks(
            lambda addresses: ports.append(int(addresses["rest"].rpartition(":")[2].partition("/")[0])),
            on_ready=lambda served: ready.set() if served.replicas == 2 else None,
        )
        cluster = Nearby()
        serving = asyncio.create_task(
            serve(artifact, Choices(), patient(), shown, stop, middle=partial(Fleet, cluster))
        )
        await asyncio.wait_for(ready.wait(), 60)
        texts = [await _get(ports[0], path) for path in ("/metadata", "/metrics")]
        stop.set()
        await asyncio.wait_for(serving, 10)
        await cluster.close()
        return texts[0], texts[1]

    metadata, metrics = asyncio.run(run())
    assert json.loads(metadata)["robots_at_hz"]["5"] >= 0
    assert {"edgevla_replicas 2.0", "edgevla_ready 1.0"} <= set(metrics.splitlines())


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text.partition("\r\n\r\n")[2]


def test_a_fleet_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"this needs ray: pip install 'edge-vla\[ray\]'"):
        middle_of(True, 2, None, "cpu")
    with pytest.raises(UsageError, match="add --ray"):
        middle_of(False, 2, None, "cpu")
    assert middle_of(False, None, None, "cpu") is None


def test_no_engine_outlives_its_fleet() -> None:
    """The command ends its process where one is still at work."""
    assert not [thread for thread in threading.enumerate() if thread.name == ENGINE and thread.is_alive()]
