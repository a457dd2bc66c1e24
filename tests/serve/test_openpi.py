"""openpi's protocol over a real socket, spoken with websockets and msgpack alone."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edge_vla.runtime import Policy
from edge_vla.serve import openpi
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Observation, Reply
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import KEY, DemoService, Running, golden, serving, wait_for


def opened(running: Running, query: str = "") -> ClientConnection:
    return connect(f"{running.ws}/{query}", compression=None, max_size=None, open_timeout=10)


def packed(image: NDArray[Any], field: str = "observation/image", **more: object) -> bytes:
    array = {b"__ndarray__": True, b"data": image.tobytes(), b"dtype": image.dtype.str, b"shape": image.shape}
    body: bytes = msgpack.packb({field: array, "prompt": INSTRUCTION, **more})
    return body


def actions(frame: str | bytes) -> NDArray[np.float64]:
    assert isinstance(frame, bytes), frame
    found = msgpack.unpackb(frame)["actions"]
    assert (found[b"dtype"], found[b"__ndarray__"]) == ("<f8", True)
    return np.frombuffer(found[b"data"], "<f8").reshape(found[b"shape"])


def problem(frame: str | bytes) -> dict[str, Any]:
    assert isinstance(frame, str)
    found: dict[str, Any] = json.loads(frame)
    assert found["request_id"]
    return found


@pytest.mark.parametrize("robot", ["droid", "libero", "aloha"])
def test_golden_requests_are_answered(running: Running, policy: Policy, robot: str) -> None:
    with opened(running) as client:
        metadata = msgpack.unpackb(client.recv(10))
        assert metadata["unnorm_keys"] == [KEY]
        client.send(golden(f"openpi-{robot}.request").read_bytes())
        found = actions(client.recv(10))
    np.testing.assert_array_equal(found, policy.act(picture(), INSTRUCTION).values[None])
    wait_for(lambda: running.service.left == [running.service.asked[0].robot])


def test_nothing_but_actions_is_an_array(running: Running) -> None:
    """ActionChunkBroker takes a row of every array."""
    with opened(running) as client:
        client.recv(10)
        for _ in range(2):
            client.send(packed(picture(), observation_id=5))
            reply = msgpack.unpackb(client.recv(10))
    arrays = [name for name, value in reply.items() if isinstance(value, dict) and b"__ndarray__" in value]
    assert arrays == ["actions"]
    assert reply["observation_id"] == 5
    assert reply["server_timing"]["prev_total_ms"] > 0
    assert reply["server_timing"]["valid_for_ms"] == 200


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [
        (b"\xc1", "E_MALFORMED", ["msgpack"]),
        ("hello", "E_MALFORMED", ["text frame"]),
        (msgpack.packb([1]), "E_MALFORMED", ["a list"]),
        (msgpack.packb({"images": {"left": 1}}), "E_MALFORMED", ["images/left", "images/cam_high"]),
        (packed(picture(), "camera"), "E_MALFORMED", ["camera", "observation/image"]),
        (packed(picture().transpose(2, 0, 1)), "E_IMAGE_SHAPE", ["CHW (3, 20, 24)", "HWC"]),
        (packed(picture(), "images/cam_high"), "E_IMAGE_SHAPE", ["HWC (20, 24, 3)", "expected CHW"]),
        (packed(picture(), prompt=None), "E_MALFORMED", ["instruction"]),
        (packed(picture(), unnorm_key="mars"), "E_UNNORM_KEY", [KEY]),
        (packed(picture(), deadline_ms="soon"), "E_MALFORMED", ["deadline_ms"]),
    ],
)
def test_a_refusal_is_text_and_the_connection_lives(
    running: Running, frame: str | bytes, code: str, words: list[str]
) -> None:
    with opened(running) as client:
        client.recv(10)
        client.send(frame)
        found = problem(client.recv(10))
        assert found["code"] == code
        assert all(word in found["detail"] for word in words), found
        client.send(packed(picture()))
        actions(client.recv(10))


def test_a_frame_over_the_limit_ends_the_connection(running: Running) -> None:
    with opened(running) as client:
        client.recv(10)
        with contextlib.suppress(ConnectionClosed):  # while it is being sent, or after
            client.send(b"x" * (Limits().body + 1))
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009  # a reset may overtake the close


def test_statistics_can_be_chosen_by_the_address(running: Running) -> None:
    with opened(running, f"?unnorm_key={KEY}") as client:
        client.recv(10)
        client.send(packed(picture()))
        client.recv(10)
    assert running.service.asked[0].unnorm_key == KEY


def test_each_connection_is_a_robot(running: Running) -> None:
    with opened(running) as one, opened(running) as other:
        for client in (one, other):
            client.recv(10)
            client.send(packed(picture()))
            client.recv(10)
    assert len({observation.robot for observation in running.service.asked}) == 2


def test_a_client_that_goes_cancels_what_it_asked(running: Running) -> None:
    running.service.hold = threading.Event()
    with opened(running) as client:
        client.recv(10)
        client.send(packed(picture()))
        wait_for(lambda: bool(running.service.asked))
    wait_for(lambda: running.service.cancelled == 1)
    wait_for(lambda: len(running.service.left) == 1)


def test_a_server_that_is_not_ready_says_503(running: Running) -> None:
    running.service.ready = False
    with pytest.raises(InvalidStatus) as refused:
        opened(running)
    assert refused.value.response.status_code == 503
    assert json.loads(refused.value.response.body or b"")["code"] == "E_NOT_READY"


class FaultyService(DemoService):
    async def act(self, observation: Observation) -> Reply:
        raise ZeroDivisionError("/home/someone/secret.py")


def test_a_fault_of_the_servers_closes_with_1011_and_shows_nothing(service: DemoService) -> None:
    faulty = FaultyService(service.policy, service.metadata)
    with serving(openpi.routes(faulty, Limits()), faulty) as running, opened(running) as client:
        client.recv(10)
        client.send(packed(picture()))
        found = client.recv(10)
        assert problem(found)["code"] == "E_ENGINE"
        assert "secret" not in str(found)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
