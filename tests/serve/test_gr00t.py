"""GR00T's protocol over a real socket, spoken with pyzmq, msgpack and numpy alone. Every request gets a reply."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
import zmq.asyncio

from edge_vla.runtime import Policy
from edge_vla.serve import gr00t
from edge_vla.serve.limits import Limits
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import DemoService, golden

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


@pytest.fixture
def client(zmq_address: Callable[[], str]) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(zmq_address())
        yield socket


def ask(client: zmq.Socket[bytes], body: bytes) -> Any:
    client.send(body)
    return msgpack.unpackb(client.recv(), object_hook=lambda found: found)


def npy(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    written = io.BytesIO()
    np.save(written, values)
    return {"__ndarray_class__": True, "as_npy": written.getvalue()}


def packed(endpoint: object = "get_action", token: object = "secret", **more: object) -> bytes:
    body: bytes = msgpack.packb({"endpoint": endpoint, "api_token": token, **more})
    return body


def action(found: dict[str, Any], prefix: str = "") -> np.ndarray[Any, Any]:
    parts = [np.load(io.BytesIO(found[f"{prefix}{axis}"]["as_npy"])) for axis in AXES]
    return np.concatenate([part.reshape(-1) for part in parts])


def test_golden_n16(client: zmq.Socket[bytes], policy: Policy) -> None:
    found, info = ask(client, golden("gr00t-n16.request").read_bytes())
    expected = policy.act(picture(), INSTRUCTION)
    np.testing.assert_array_equal(action(found), expected.values.astype("f4"))
    assert np.load(io.BytesIO(found["x"]["as_npy"])).shape == (1, 1, 1)
    assert info["edge_vla"][0]["tokens"] == list(expected.tokens)


def test_golden_n15(client: zmq.Socket[bytes], policy: Policy) -> None:
    found = ask(client, golden("gr00t-n15.request").read_bytes())
    np.testing.assert_array_equal(action(found, "action."), policy.act(picture(), INSTRUCTION).values)
    modalities = ask(client, packed("get_modality_config"))
    assert isinstance(modalities["action"]["as_json"], str), "N1.5 reads JSON text"


def test_golden_ping(client: zmq.Socket[bytes]) -> None:
    assert ask(client, golden("gr00t-ping.request").read_bytes()) == {"status": "ok", "message": "Server is running"}


def test_modalities_and_reset(client: zmq.Socket[bytes], service: DemoService) -> None:
    modalities = ask(client, packed("get_modality_config"))
    assert modalities["action"]["as_json"]["modality_keys"] == list(AXES)
    ask(client, golden("gr00t-n16.request").read_bytes())
    assert ask(client, packed("reset", data={"options": None})) == {}
    assert service.resets == [service.asked[0].robot]


def _n16(video: object, language: object = None) -> dict[str, Any]:
    return {"observation": {"video": {"image": video}, "language": language or {"a": [[INSTRUCTION]]}}}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "E_MALFORMED", ["msgpack"]),
        (b"\x80\x02}q\x00.", "E_MALFORMED", ["msgpack"]),  # a pickle
        (packed("kill"), "E_UNAUTHORISED", ["kill is refused"]),
        (packed("train"), "E_NOT_FOUND", ["train", "get_action"]),
        (packed(3), "E_NOT_FOUND", ["get_action"]),
        (packed("ping", token="guess"), "E_UNAUTHORISED", ["api_token"]),
        (packed("ping", token=None), "E_UNAUTHORISED", ["api_token"]),
        (packed(), "E_MALFORMED", ["nothing", "a map"]),
        (packed(data={}), "E_MALFORMED", ["video"]),
        (packed(data={"observation": {}}), "E_MALFORMED", ["'video'"]),
        (packed(data=_n16(1)), "E_IMAGE_SHAPE", ["a number"]),
        (packed(data=_n16(npy(picture()))), "E_IMAGE_SHAPE", ["(20, 24, 3)", "(B, T, H, W, 3)"]),
        (packed(data=_n16(npy(picture().transpose(2, 0, 1)[None, None]))), "E_IMAGE_SHAPE", ["CHW"]),
        (packed(data=_n16(npy(picture()[None, None] / 255))), "E_IMAGE_SHAPE", ["float64"]),
        (packed(data=_n16(npy(np.zeros((5, 1, 16, 16, 3), "u1")))), "E_TOO_LARGE", ["a batch of 5"]),
        (packed(data=_n16(npy(picture()[None, None]), {"a": [["x"], ["y"]]})), "E_MALFORMED", ["2 instructions"]),
        (packed(data=_n16(npy(picture()[None, None]), {"a": [["x"]], "b": [["y"]]})), "E_MALFORMED", ["'a', 'b'"]),
    ],
)
def test_refusals_are_answers(client: zmq.Socket[bytes], body: bytes, code: str, words: list[str]) -> None:
    found = ask(client, body)
    assert found["code"] == code
    assert found["request_id"]
    assert all(word in found["error"] for word in words), found
    assert ask(client, packed("ping"))["status"] == "ok"


def test_a_message_over_the_limit_is_answered(client: zmq.Socket[bytes]) -> None:
    assert ask(client, b"x" * (Limits().body + 1))["code"] == "E_TOO_LARGE"


def test_a_batch_has_an_action_a_row(client: zmq.Socket[bytes], policy: Policy, service: DemoService) -> None:
    pictures = np.stack([picture(), picture()[::-1]])
    found, _ = ask(client, packed(data=_n16(npy(pictures[:, None]))))
    parts = np.concatenate([np.load(io.BytesIO(found[axis]["as_npy"]))[:, 0] for axis in AXES], axis=-1)
    expected = [policy.act(np.ascontiguousarray(each), INSTRUCTION).values for each in pictures]
    np.testing.assert_array_equal(parts, np.array(expected, "f4"))
    assert len({observation.robot for observation in service.asked}) == 2


def test_shutting_down_answers_what_is_under_way_and_what_waits(
    service: DemoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.hold = threading.Event()
    monkeypatch.setattr(gr00t, "DRAIN_S", 0.1)

    async def scene() -> list[Any]:
        bound: list[str] = []
        serving = asyncio.create_task(gr00t.serve_zmq(service, "tcp://127.0.0.1:0", Limits(), on_bound=bound.append))
        while not bound:
            await asyncio.sleep(0.01)
        with zmq.asyncio.Context() as context:
            clients = [context.socket(zmq.REQ) for _ in range(3)]
            for client in clients:
                client.connect(bound[0])
                await client.send(golden("gr00t-n16.request").read_bytes())
            while len(service.asked) < 3:
                await asyncio.sleep(0.01)
            serving.cancel()
            replies = [msgpack.unpackb(await asyncio.wait_for(client.recv(), 5)) for client in clients]
            await asyncio.gather(serving, return_exceptions=True)
            for client in clients:
                client.close(0)
            return replies

    replies = asyncio.run(scene())
    assert [reply["code"] for reply in replies] == ["E_SHUTTING_DOWN"] * 3
    assert len(service.left) == 3


def test_a_silent_robot_is_forgotten(service: DemoService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr00t, "IDLE_S", 0.2)

    async def scene() -> None:
        bound: list[str] = []
        serving = asyncio.create_task(gr00t.serve_zmq(service, "tcp://127.0.0.1:0", Limits(), on_bound=bound.append))
        while not bound:
            await asyncio.sleep(0.01)
        with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as client:
            client.connect(bound[0])
            await client.send(golden("gr00t-n16.request").read_bytes())
            await client.recv()
            for _ in range(200):
                await asyncio.sleep(0.02)
                if service.left:
                    break
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(scene())
    assert service.left == [service.asked[0].robot]


def test_more_clients_than_the_limit_are_refused(service: DemoService) -> None:
    async def scene() -> list[Any]:
        bound: list[str] = []
        limits = Limits(connections=1)
        serving = asyncio.create_task(gr00t.serve_zmq(service, "tcp://127.0.0.1:0", limits, on_bound=bound.append))
        while not bound:
            await asyncio.sleep(0.01)
        replies: list[Any] = []
        with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as one, context.socket(zmq.REQ) as other:
            for client in (one, other, one):
                client.connect(bound[0]) if len(replies) < 2 else None
                await client.send(packed("ping"))
                replies.append(msgpack.unpackb(await asyncio.wait_for(client.recv(), 5)))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return replies

    first, second, third = asyncio.run(scene())
    assert first["status"] == third["status"] == "ok"
    assert (second["code"], second["retry_after_s"]) == ("E_OVERLOAD", 60)
