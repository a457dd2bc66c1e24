"""vla-eval's protocol over a real socket, spoken with websockets and msgpack alone."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from edge_vla.runtime import Policy
from edge_vla.serve.vla_eval import closing_positive
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import Running, golden


def opened(running: Running, query: str = "") -> ClientConnection:
    return connect(f"{running.ws}/vla-eval{query}", compression=None, max_size=None, open_timeout=10)


def say(client: ClientConnection, said: str, payload: object, seq: object = 1) -> None:
    client.send(msgpack.packb({"type": said, "payload": payload, "seq": seq, "timestamp": 0.0}))


def hear(client: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(client.recv(10))
    assert set(found) == {"type", "payload", "seq", "timestamp"}
    return found


def observation(**images: object) -> dict[str, Any]:
    array = {"__ndarray__": True, "data": picture().tobytes(), "dtype": "|u1", "shape": list(picture().shape)}
    return {"images": images or {"agentview": array}, "task_description": INSTRUCTION}


@pytest.mark.parametrize("form", ["png", "raw"])
@pytest.mark.parametrize("gripper", ["raw", "close-positive"])
def test_golden_episodes_are_answered(running: Running, policy: Policy, form: str, gripper: str) -> None:
    with opened(running, f"?gripper={gripper}") as client:
        client.send(golden("vla-eval-hello.request").read_bytes())
        hello = hear(client)
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
        client.send(golden("vla-eval-episode_start.request").read_bytes())
        client.send(golden(f"vla-eval-{form}.request").read_bytes())
        reply = hear(client)
        client.send(golden("vla-eval-episode_end.request").read_bytes())
    assert (reply["type"], reply["seq"]) == ("action", 3)
    packed = reply["payload"]["actions"]
    found = np.frombuffer(packed["data"], packed["dtype"]).reshape(packed["shape"])
    expected = policy.act(picture(), INSTRUCTION).values
    if gripper != "raw":
        expected[-1] = -np.sign(2 * expected[-1] - 1)
        assert hello["payload"]["action_spec"]["gripper"]["format"] == "binary_close_positive"
    np.testing.assert_array_equal(found, expected)
    assert running.service.resets


def test_jpeg_is_answered(running: Running) -> None:
    with opened(running) as client:
        client.send(golden("vla-eval-jpeg.request").read_bytes())
        assert hear(client)["type"] == "action"


@pytest.mark.parametrize(
    ("said", "payload", "seq", "words"),
    [
        ("dance", {}, 4, ["E_MALFORMED", "dance"]),
        ("observation", [], 4, ["E_MALFORMED", "a list"]),
        ("observation", {}, 4, ["E_MALFORMED", "images"]),
        ("observation", {"images": {}, "task_description": "x"}, 4, ["E_MALFORMED", "images"]),
        ("observation", observation(left=1, right=2), 4, ["E_MALFORMED", "agentview", "?camera=NAME"]),
        ("observation", observation(agentview=1), 4, ["E_IMAGE_SHAPE", "a number"]),
        ("observation", {**observation(), "task_description": 3}, 4, ["E_INSTRUCTION"]),
    ],
)
def test_a_refusal_is_an_error_message_and_the_connection_lives(
    running: Running, said: str, payload: object, seq: int, words: list[str]
) -> None:
    with opened(running) as client:
        say(client, said, payload, seq)
        error = hear(client)
        assert (error["type"], error["seq"]) == ("error", seq)
        assert all(word in error["payload"]["error"] for word in words), error
        assert json.loads(error["payload"]["problem"])["request_id"]
        say(client, "observation", observation(), 9)
        assert (hear(client)["type"], running.service.asked[0].observation_id) == ("action", 9)


def test_one_of_several_cameras_can_be_chosen(running: Running) -> None:
    images = observation()["images"] | {"wrist": observation()["images"]["agentview"]}
    with opened(running, "?camera=wrist") as client:
        say(client, "observation", observation(**images))
        assert hear(client)["type"] == "action"


def test_health(running: Running) -> None:
    with urllib.request.urlopen(f"{running.http}/health", timeout=10) as response:
        assert json.load(response) == {"status": "ok"}


@given(st.floats(0, 1))
def test_the_gripper_closes_towards_plus_one(gripper: float) -> None:
    found = closing_positive(np.array([0.0, gripper]))[-1]
    assert found == (1 if gripper < 0.5 else -1 if gripper > 0.5 else 0)
