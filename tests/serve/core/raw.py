"""Bytes on sockets, without the client; and an engine that fails when a test wants it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
from websockets.sync.client import ClientConnection, connect

from edge_vla.runtime.types import Decision
from tests.serve.core.conftest import WORDS, Live, picture


class Faulty:
    """The server's own engine, but for what a test makes of its next decisions."""

    def __init__(self, live: Live) -> None:
        self.engine = live.policy.engine
        self.fault: BaseException | Decision | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.decisions = 0
        live.policy.engine = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def decide(self, *arguments: Any, **options: Any) -> Decision:
        self.decisions += 1
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        if isinstance(self.fault, BaseException):
            raise self.fault
        return self.fault or self.engine.decide(*arguments, **options)


def observe(socket: ClientConnection, number: int, **change: Any) -> None:
    image = picture(0)
    message = {"type": "observation", "id": number, "image": image.tobytes(), "shape": list(image.shape)}
    socket.send(msgpack.packb(message | {"instruction": WORDS} | change))


def receive(socket: ClientConnection, timeout: float = 20) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(socket.recv(timeout))
    return found


@contextmanager
def native(live: Live, robot: str = "raw", **options: Any) -> Iterator[ClientConnection]:
    with connect(f"{live.ws}/v1/robot?robot={robot}", compression=None, proxy=None, **options) as found:
        assert receive(found)["type"] == "hello"
        yield found


def socket_to(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=10)
