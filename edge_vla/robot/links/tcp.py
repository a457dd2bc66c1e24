"""A robot over TCP: `tcp://HOST:PORT` in binary, `tcp+json://HOST:PORT` as a JSON object a line."""

from __future__ import annotations

import select
import socket
from typing import Final

from edge_vla.robot.faces import LinkError
from edge_vla.robot.links.answered import AnsweredLink
from edge_vla.robot.links.wire import Binary, Lines

CONNECT_S: Final = 2.0
WAIT_S: Final = 0.2  # of a read
WRITE_S: Final = 0.2  # a robot that does not read for so long is gone


class TcpPort:
    """A connected socket. `write` and `close` from other threads than `read`."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(WRITE_S)

    def read(self) -> bytes:
        try:
            if not select.select([self._socket], [], [], WAIT_S)[0]:
                return b""
            data = self._socket.recv(8192)
        except ValueError as error:  # closed by another thread
            raise OSError("closed") from error
        if not data:
            raise OSError("the robot closed the connection")
        return data

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


def tcp_link(host: str, port: int, dims: int, *, json: bool = False) -> AnsweredLink:
    name = f"tcp{'+json' if json else ''}://{host}:{port}"

    def open_port() -> TcpPort:
        try:
            return TcpPort(host, port)
        except OSError as error:
            why = error.strerror or str(error)
            raise LinkError("cut", f"{name}: {why}: start the robot's program there, or correct --to") from error

    return AnsweredLink(name, dims, open_port, Lines if json else Binary)
