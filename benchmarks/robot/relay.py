"""A wire that can be cut: a TCP relay between a policy's machine and a robot's, with the faults that networks have.

Knows no message.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Final, Literal

State = Literal["well", "cut", "stalled"]

LOOK_S: Final = 0.01


class Relay:
    """Listens on `port` and passes bytes on to `target`. `state` may be set at any time, by any thread.

    `cut` ends the connection and lets none begin; `stalled` keeps what comes until it is well again. `flip` flips a
    bit of the next bytes for the robot.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.state: State = "well"
        self.flip = threading.Event()
        self.connections = 0
        self._target, self._ended = target, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(2.0)
        self._listener.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._listener], [], [], LOOK_S)[0]:
                continue
            near, _ = self._listener.accept()
            with near, contextlib.suppress(OSError):
                if self.state != "cut":
                    self._join(near)

    def _join(self, near: socket.socket) -> None:
        with socket.create_connection(self._target, 1.0) as far:
            self.connections += 1
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._ended.is_set() and self.state != "cut":
                if self.state == "stalled":
                    self._ended.wait(LOOK_S)
                    continue
                for source in select.select([near, far], [], [], LOOK_S)[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is near and self.flip.is_set():
                        self.flip.clear()
                        data = data[:-5] + bytes((data[-5] ^ 16,)) + data[-4:]
                    (far if source is near else near).sendall(data)
