"""Small clients for measuring: our own protocol and OpenVLA's REST, with what a robot would use and nothing of ours."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.sync.client import connect

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """An action, or the code of a refusal. `age_ms`, `valid_for_ms`: how old its image was, how long it may be used."""

    robot: str
    observation_id: int | str | None
    tokens: tuple[int, ...]
    action: NDArray[np.float64]
    age_ms: float
    valid_for_ms: float
    infer_ms: float
    code: str | None = None


class WebSocketRobot:
    """Our own protocol, one observation at a time."""

    def __init__(self, address: str, robot: str, timeout_s: float = TIMEOUT_S) -> None:
        self._open = contextlib.ExitStack()
        opening = connect(f"{address}?robot={robot}", compression=None, max_size=None, open_timeout=timeout_s)
        self._socket = self._open.enter_context(opening)
        self._timeout_s, self._next = timeout_s, 0
        self.greeting: dict[str, Any] = msgpack.unpackb(self._socket.recv(timeout_s))

    def act(self, image: NDArray[np.uint8], instruction: str) -> Answer:
        self._next += 1
        self._socket.send(observation(image, instruction, self._next))
        return answer(self._socket.recv(self._timeout_s))

    def reset(self) -> None:
        self._socket.send(msgpack.packb({"type": "reset"}))
        self._socket.recv(self._timeout_s)

    def close(self) -> None:
        self._open.close()


class RestRobot:
    """OpenVLA's `/act` on one kept connection; `robot` lets the server keep its session."""

    def __init__(self, port: int, robot: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._connection.connect()
        self._headers = {"Content-Type": "application/json", "X-EdgeVLA-Robot": robot}

    def act(self, image: NDArray[np.uint8], instruction: str) -> Answer:
        pixels = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": "|u1", "shape": image.shape}
        body = json.dumps({"image": pixels, "instruction": instruction})
        self._connection.request("POST", "/act", body, self._headers)
        response = self._connection.getresponse()
        reply, said = json.loads(response.read()), response.headers
        return Answer(
            robot=said["X-EdgeVLA-Robot"],
            observation_id=None,
            tokens=tuple(int(token) for token in said["X-EdgeVLA-Tokens"].split(",")),
            action=np.frombuffer(base64.b64decode(reply["__numpy__"]), reply["dtype"]).reshape(reply["shape"]),
            age_ms=float(said["X-EdgeVLA-Age-Ms"]),
            valid_for_ms=float(said["X-EdgeVLA-Valid-For-Ms"]),
            infer_ms=float(said["X-EdgeVLA-Infer-Ms"]),
        )

    def close(self) -> None:
        self._connection.close()


def observation(image: NDArray[np.uint8], instruction: str, number: int) -> bytes:
    sent = {"type": "observation", "id": number, "image": image.tobytes(), "shape": list(image.shape)}
    packed: bytes = msgpack.packb({**sent, "instruction": instruction})
    return packed


def answer(frame: str | bytes) -> Answer:
    said = msgpack.unpackb(frame)
    if said["type"] == "error":
        return Answer("", said["id"], (), np.empty(0), 0.0, 0.0, 0.0, said["code"])
    return Answer(
        robot=said["robot"],
        observation_id=said["id"],
        tokens=tuple(said["tokens"]),
        action=np.array(said["action"]),
        age_ms=said["age_ms"],
        valid_for_ms=said["valid_for_ms"],
        infer_ms=said["infer_ms"],
    )
