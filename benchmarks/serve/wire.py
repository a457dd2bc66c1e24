"""Small clients for measuring: our own protocol and OpenVLA's REST, with what a robot would use and nothing of ours."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.client import ClientProtocol
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.uri import parse_uri

TIMEOUT_S = 30.0
RECEIVED = 65_536  # bytes at a time


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
    """Our own protocol, one observation at a time: `websockets` on a socket that blocks, without a thread that reads.

    Nothing answers the server's pings while nobody waits for a reply.
    """

    def __init__(self, address: str, robot: str, timeout_s: float = TIMEOUT_S) -> None:
        uri = parse_uri(f"{address}?robot={robot}")
        self._socket = socket.create_connection((uri.host, uri.port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol, self._heard, self._next = ClientProtocol(uri, max_size=None), deque[bytes](), 0
        self._protocol.send_request(self._protocol.connect())
        self._write()
        self.greeting: dict[str, Any] = msgpack.unpackb(self._receive())

    def act(self, image: NDArray[np.uint8], instruction: str) -> Answer:
        self._next += 1
        self._send(observation(image, instruction, self._next))
        return answer(self._receive())

    def reset(self) -> None:
        self._send(msgpack.packb({"type": "reset"}))
        self._receive()

    def close(self) -> None:
        self._protocol.send_close()
        self._write()
        self._socket.close()

    def _send(self, message: bytes) -> None:
        self._protocol.send_binary(message)
        self._write()

    def _receive(self) -> bytes:
        while not self._heard:
            data = self._socket.recv(RECEIVED)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._protocol.receive_data(data)
            self._write()
            frames = [event for event in self._protocol.events_received() if isinstance(event, WebSocketFrame)]
            self._heard.extend(bytes(frame.data) for frame in frames if frame.opcode is Opcode.BINARY)
        return self._heard.popleft()

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            self._socket.sendall(data)


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
    sent = {
        "type": "observation",
        "id": number,
        "image": np.ascontiguousarray(image).data.cast("B"),
        "shape": list(image.shape),
    }
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
