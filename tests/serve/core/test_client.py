"""A robot's client against a real server: what it returns is true, and nothing else is ever an action."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as fake_server

from edge_vla.artifact import Artifact
from edge_vla.data import open_image
from edge_vla.openvla import as_rgb
from edge_vla.runtime import Policy
from edge_vla.serve.client import (
    Action,
    AsyncRobot,
    ClientError,
    DeadlineError,
    DisconnectedError,
    ProtocolError,
    RefusedError,
    Robot,
    StaleError,
    Watchdog,
)
from tests.serve.core.conftest import WORDS, Live, Picture, picture, wait_until

SOON = 20_000.0  # ms: a deadline that a busy machine keeps


def act(policy: Policy, image: Picture) -> tuple[tuple[int, ...], tuple[float, ...]]:
    action = policy.session().act(image, WORDS)
    return action.tokens, action.margins


def test_what_a_reply_says_of_itself_is_true(live: Live, policy: Policy, artifact: Path) -> None:
    image = picture(1)
    with Robot(live.ws, "arm-1") as robot:
        before, began_ns = time.monotonic(), time.monotonic_ns()
        first = robot.act(image, WORDS, deadline_ms=SOON, age_ms=40.0)
        passed = 1e3 * (time.monotonic() - before)
        second = robot.act(image, WORDS, deadline_ms=SOON)
    expected = policy.session().act(image, WORDS)
    assert first.tokens == second.tokens == expected.tokens
    np.testing.assert_array_equal(first.values, expected.values)
    assert first.values.dtype == np.float64
    assert first.unnorm_key == expected.unnorm_key
    assert first.artifact == Artifact(artifact).identity[:12]
    assert (first.observation_id, second.observation_id) == (1, 2)
    assert first.request_id != second.request_id
    assert 40.0 + first.queue_ms + first.infer_ms <= first.age_ms <= 40.0 + passed
    assert first.queue_ms >= 0
    assert began_ns < first.server_recv_ns < began_ns + 1e6 * passed, "one machine, one clock"
    assert second.server_recv_ns >= first.server_recv_ns + 1e6 * first.infer_ms
    assert 0 < first.infer_ms <= first.round_trip_ms <= passed
    assert first.fresh
    valid_ms = live.json("/metadata")["valid_ms"]
    assert first.valid_until == pytest.approx(before + (valid_ms - 40) / 1e3, abs=passed / 1e3)


def test_a_picture_file_is_decoded_as_it_is(live: Live, policy: Policy, tmp_path: Path) -> None:
    image = picture(2)
    as_rgb(image).save(tmp_path / "camera.png")
    as_rgb(image).save(tmp_path / "camera.jpg", quality=80)
    with Robot(live.ws, "arm-1") as robot:
        for name in ("camera.png", "camera.jpg"):
            content = (tmp_path / name).read_bytes()
            found = robot.act(content, WORDS, deadline_ms=SOON)
            assert found.tokens == policy.act(open_image(tmp_path / name), WORDS).tokens
        with pytest.raises(ValueError, match="JPEG or PNG"):
            robot.act(b"GIF89a", WORDS, deadline_ms=SOON)


def test_robots_are_never_crossed(live: Live, policy: Policy) -> None:
    """Four robots, 500 actions side by side; each robot's pictures are its own, and so must its actions be."""
    pictures = {f"arm-{i}": [picture(100 * i + k) for k in range(5)] for i in range(4)}
    expected = {name: [act(policy, image) for image in images] for name, images in pictures.items()}
    assert len({found for each in expected.values() for found in each}) == 20, "the pictures tell robots apart"

    async def drive(name: str) -> int:
        async with AsyncRobot(live.ws, name) as robot:
            for step in range(125):
                action = await robot.act(pictures[name][step % 5], WORDS, deadline_ms=20_000)
                assert (action.tokens, action.margins) == expected[name][step % 5], (name, step)
        return 125

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*map(drive, pictures)))

    assert asyncio.run(all_of_them()) == 500


def test_the_newest_observation_wins(live: Live) -> None:
    """One robot asks five times without waiting: what was replaced in the queue is refused, the last is answered."""

    async def main() -> list[Action | BaseException]:
        async with AsyncRobot(live.ws, "eager") as robot:
            asked = [robot.act(picture(k), WORDS, deadline_ms=SOON) for k in range(4)]
            return await asyncio.gather(*asked, return_exceptions=True)

    first, *between, last = asyncio.run(main())
    assert isinstance(first, Action)
    assert isinstance(last, Action)
    assert last.observation_id == 4
    codes = [error.code for error in between if isinstance(error, RefusedError)]
    assert codes == ["E_SUPERSEDED"] * len(between)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"image": np.zeros((3, 112, 112), np.uint8)}, "E_IMAGE_SHAPE", "got CHW (3x112x112), expected HWC"),
        ({"image": np.zeros((8, 112, 3), np.uint8)}, "E_IMAGE_SHAPE", "at least 16 pixels"),
        ({"image": np.zeros((5000, 20, 3), np.uint8)}, "E_TOO_LARGE", "resize it"),
        ({"instruction": " "}, "E_INSTRUCTION", "empty"),
        ({"instruction": "a" * 600}, "E_INSTRUCTION", "512 bytes"),
        ({"instruction": "a b c d e f g h " * 10}, "E_INSTRUCTION", "64 tokens"),
        ({"unnorm_key": "bridge_orig"}, "E_UNNORM_KEY", "choose one of edge_vla_demo_world1"),
        ({"age_ms": -1.0}, "E_MALFORMED", "age_ms"),
    ],
)
def test_bad_observations_are_named(live: Live, change: dict[str, object], code: str, says: str) -> None:
    asked: dict[str, object] = {"image": picture(0), "instruction": WORDS, "deadline_ms": SOON} | change
    with Robot(live.ws, "arm-1") as robot:
        with pytest.raises(RefusedError) as refused:
            robot.act(**asked)  # type: ignore[arg-type]
        assert refused.value.code == code
        assert says in refused.value.detail
        assert refused.value.request_id
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh, "the connection lives on"


def test_a_deadline_that_no_device_keeps_costs_it_nothing(live: Live) -> None:
    ran = 'edgevla_request_seconds_count{stage="infer"}'
    before = live.metric(ran)
    with Robot(live.ws, "hasty") as robot:
        for _ in range(5):
            with pytest.raises(ClientError) as error:
                robot.act(picture(0), WORDS, deadline_ms=0.5)
            assert isinstance(error.value, DeadlineError) or "E_DEADLINE" in str(error.value)
    assert live.metric(ran) == before


def test_a_new_connection_of_a_robot_closes_its_old_one(live: Live) -> None:
    with Robot(live.ws, "twin") as old, Robot(live.ws, "twin") as new:
        assert new.act(picture(0), WORDS, deadline_ms=SOON).fresh
        wait_until(lambda: old._robot._connection is not None and old._robot._connection.broken is not None)
        assert "connected anew" in str(old._robot._connection.broken)  # type: ignore[union-attr]
        assert new.act(picture(0), WORDS, deadline_ms=SOON).fresh


def test_a_killed_client_leaves_nothing_behind(live: Live) -> None:
    script = (
        "import sys, time, numpy as np\nfrom edge_vla.serve.client import Robot\n"
        f"robot = Robot({live.ws!r}, 'doomed')\n"
        f"robot.act(np.zeros((112, 112, 3), np.uint8), {WORDS!r}, deadline_ms=20000)\n"
        "print('ready', flush=True)\n"
        f"while True: robot.act(np.zeros((112, 112, 3), np.uint8), {WORDS!r}, deadline_ms=20000)\n"
    )
    wait_until(lambda: live.metric("edgevla_sessions") == 0)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        assert live.metric("edgevla_sessions") == 1
        client.kill()
        client.wait()
    wait_until(lambda: live.metric("edgevla_sessions") == 0 and live.metric("edgevla_inflight") == 0)
    with Robot(live.ws, "arm-1") as robot:
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh


def test_the_watchdog_holds_once_a_lapse_and_watches_on(live: Live) -> None:
    held = list[float]()
    with Robot(live.ws, "arm-1", watchdog_ms=150, on_hold=held.append) as robot:
        time.sleep(0.3)
        assert held == [], "it watches from the first action on"
        for lapses in (1, 2):
            robot.act(picture(0), WORDS, deadline_ms=SOON)
            wait_until(lambda: len(held) == lapses)  # noqa: B023
            time.sleep(0.3)
            assert len(held) == lapses
    assert all(0.15 <= seconds < 1 for seconds in held)


def test_a_watchdog_that_is_fed_is_silent() -> None:
    held = list[float]()
    watchdog = Watchdog(0.2, held.append)
    for _ in range(20):
        watchdog.feed()
        time.sleep(0.02)
    watchdog.close()
    time.sleep(0.3)
    assert held == []


HELLO = {
    "type": "hello", "protocol": 1, "robot": "arm", "artifact": "0", "model": "m", "unnorm_keys": ["k"],
    "default_unnorm_key": "k", "dims": 7, "image_size": 112, "preprocess": "resize-naive", "version": "0",
}  # fmt: skip


def answer(number: int, **change: object) -> bytes:
    reply: dict[str, object] = {
        "type": "action", "id": number, "robot": "arm", "action": [0.1] * 7, "tokens": [1] * 7, "margins": [1.0] * 7,
        "unnorm_key": "k", "age_ms": 1.0, "valid_for_ms": 400.0, "queue_ms": 0.0, "infer_ms": 1.0, "artifact": "0",
        "request_id": "r", "server_recv_ns": 1,
    }  # fmt: skip
    data: bytes = msgpack.packb(reply | change)
    return data


class Wrong:
    """A server that says whatever a test wants, as no real one should."""

    def __init__(self) -> None:
        self.connections = 0
        self.said: Callable[[Any], list[bytes | str]] = lambda asked: [answer(asked["id"])]
        self.delay = 0.0
        self.server = fake_server(self.handle, "127.0.0.1", 0, compression=None)
        self.url = f"ws://127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        connection.send(msgpack.packb(HELLO))
        for frame in connection:
            time.sleep(self.delay)
            for said in self.said(msgpack.unpackb(frame)):
                connection.send(said)


@pytest.fixture
def wrong() -> Iterator[Wrong]:
    server = Wrong()
    yield server
    server.server.shutdown()


def test_a_late_reply_is_never_the_next_answer(wrong: Wrong) -> None:
    """The reply to the first observation comes after its deadline, under the number of the second."""
    with Robot(wrong.url, "arm") as robot:
        wrong.delay = 0.3
        wrong.said = lambda asked: [answer(asked["id"] + 1, action=[9.9] * 7)]
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            robot.act(picture(0), WORDS, deadline_ms=100)
        assert time.monotonic() - began < 0.25
        wrong.delay, wrong.said = 0.0, lambda asked: [answer(asked["id"])]
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).values[0] == 0.1
    assert wrong.connections == 2


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (lambda asked: [answer(asked["id"], robot="other")], ProtocolError),
        (lambda asked: [answer(asked["id"], action=[float("nan")] * 7)], ProtocolError),
        (lambda asked: [answer(asked["id"], action="error")], ProtocolError),
        (lambda asked: [answer(asked["id"], action=[])], ProtocolError),
        (lambda asked: [answer(asked["id"], valid_for_ms=0.0, age_ms=0.0)], StaleError),
        (lambda asked: [answer(asked["id"], valid_for_ms=None)], ProtocolError),
        (lambda asked: [b"\xc1"], ProtocolError),
        (lambda asked: ["error"], ProtocolError),
        (lambda asked: [answer(asked["id"] - 1)], DeadlineError),
        (lambda asked: [answer(asked["id"], type="error", code="E_X", detail="d")], RefusedError),
    ],
)
def test_nothing_but_its_own_action_is_an_action(wrong: Wrong, said: object, error: type[ClientError]) -> None:
    wrong.said = said  # type: ignore[assignment]
    with Robot(wrong.url, "arm") as robot, pytest.raises(error):
        robot.act(picture(0), WORDS, deadline_ms=400)


def test_no_server_is_an_error_too() -> None:
    with pytest.raises(DisconnectedError, match="no connection"):
        Robot("ws://127.0.0.1:9", "arm").act(picture(0), WORDS, deadline_ms=SOON)


def test_the_client_imports_no_torch() -> None:
    script = "import sys, edge_vla.serve.client; print([m for m in ('torch', 'starlette', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
