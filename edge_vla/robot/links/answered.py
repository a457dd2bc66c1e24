"""A link to a robot that answers: each command is sent until the robot says what became of it, or it is too old.

What TCP and a serial port share. A thread keeps the port open and reads the robot's beats; `send` returns when a beat
says that its command was taken. Sending twice does no harm: a number is taken once. Knows no bytes and no sockets.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from edge_vla.robot.faces import Command, LinkError
from edge_vla.robot.links.freshness import Freshness
from edge_vla.robot.links.wire import MOST_NUMBER, Beat, Codec, Order

SILENT_S: Final = 0.5  # without a beat: a robot sends one every 50 ms
AGAIN_S: Final = (0.1, 0.5)  # between two attempts to connect: at first, at most
GIVE_UP_S: Final = 2.0  # without a beat: a port that is open and dead is opened again
SKIP: Final = 1000  # numbers, at most, when a connection begins: no answer to an earlier command looks like ours
USED_UP: Final = "no higher number for another command: start the robot's program again, then act"
LONGEST_US: Final = 60_000_000  # that a command may be valid


class Port(Protocol):
    """An open way to the robot. Every call has an end; OSError where it is gone."""

    def read(self) -> bytes:
        """What has come, after waiting a little; empty where nothing has."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class AnsweredLink:
    """An `ActionSink`. `open_port` raises LinkError or OSError, and is tried again; each port has its own `codec`.

    `dims`: how many values a command has, compared with what the robot says. `resend_s`: without an answer.
    """

    def __init__(
        self,
        name: str,
        dims: int,
        open_port: Callable[[], Port],
        codec: Callable[[], Codec],
        *,
        resend_s: float = 0.05,
        silent_s: float = SILENT_S,
    ) -> None:
        self.name, self._dims, self._open_port, self._codec = name, dims, open_port, codec
        self._resend_s, self._silent_s = resend_s, silent_s
        self._changed = threading.Condition()
        self._port: Port | None = None
        self._writer: Codec = codec()
        self._beat: Beat | None = None
        self._heard = 0.0  # when that beat came, at the latest
        self._freshness = Freshness()
        self._number, self._skip = 0, 0  # the highest that was sent; how many to leave out before the next
        self._fault = LinkError("cut", f"{name}: not connected yet", taken=False)
        self.connections = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"link {name}", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        with self._changed:
            self._need()

    def wait(self, seconds: float) -> None:
        """Until it is ready. Raises why it is not, where it has not become so in time."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                try:
                    self._need()
                    return
                except LinkError:
                    if (left := end - time.monotonic()) <= 0:
                        raise
                self._changed.wait(min(left, 0.1))

    def send(self, command: Command) -> None:
        with self._changed:
            connection, beat = self.connections, self._need()
            number = max(self._number, beat.number) + 1 + self._skip
            if number > MOST_NUMBER:
                raise LinkError("refused", f"{self.name} has {USED_UP}", taken=False)
            self._number = number
            self._skip = 0
        asked = 0
        while (left := command.valid_until - time.monotonic()) > 0:
            port, echo, valid = self._current(connection, command.valid_until)
            age = None if command.taken is None else max(0, int(1e6 * (time.monotonic() - command.taken)))
            order = Order(command.kind, number, min(LONGEST_US, valid), echo, age, tuple(map(float, command.values)))
            try:
                port.write(self._writer.pack(order))
            except OSError as error:
                self._lose(port, LinkError("cut", f"{self.name}: {error}; the command may have been lost"))
            asked += 1
            if self._answered(connection, number, min(left, self._resend_s)):
                return
        raise LinkError(
            "silent",
            f"{self.name} did not answer a command that was sent {asked} times while it was valid",
            taken=None if asked else False,
        )

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            port, self._port = self._port, None
            self._fault = LinkError("cut", f"{self.name} is closed", taken=False)
            self._changed.notify_all()
        if port is not None:
            port.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)

    def _need(self) -> Beat:
        """The newest beat, where the link can be used. Called with the lock."""
        if self._port is None or self._beat is None:
            raise LinkError(self._fault.fault, str(self._fault), taken=False)
        if (silent := time.monotonic() - self._heard) > self._silent_s:
            raise LinkError(
                "silent",
                f"{self.name} has said nothing for {1e3 * silent:.0f} ms: is its program running?",
                taken=False,
            )
        if self._beat.dims != self._dims:
            raise LinkError(
                "refused",
                f"{self.name} takes {self._beat.dims} values and robot.toml declares {self._dims}: correct one of them",
                taken=False,
            )
        if not self._beat.ready:
            raise LinkError("refused", f"{self.name}: {REFUSALS['not now']}", taken=False)
        return self._beat

    def _current(self, connection: int, valid_until: float) -> tuple[Port, int, int]:
        """Where to write, the beat to echo, and for how many microseconds after it the command is valid."""
        with self._changed:
            if self.connections != connection or self._port is None or self._beat is None:
                raise self._lost()
            return (self._port, *self._freshness.until(valid_until))

    def _answered(self, connection: int, number: int, seconds: float) -> bool:
        """Whether the robot says within `seconds` that it took the command. LinkError where it says that it did not."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                if self.connections != connection or self._port is None:
                    raise self._lost()
                beat = self._beat
                if beat is not None and beat.number == number:
                    if beat.verdict == "taken":
                        return True
                    raise LinkError("refused", f"{self.name} refused a command: {REFUSALS[beat.verdict]}", taken=False)
                if (left := end - time.monotonic()) <= 0:
                    return False
                self._changed.wait(left)

    def _lost(self) -> LinkError:
        return LinkError("cut", f"{self._fault}; what became of the last command is not known")

    def _run(self) -> None:
        pause = AGAIN_S[0]
        while not self._closed.is_set():
            try:
                port = self._open_port()
            except (LinkError, OSError) as error:
                known = isinstance(error, LinkError)
                self._fault = error if known else LinkError("cut", f"{self.name}: {error}")  # type: ignore[assignment]
            else:
                if self._read(port):
                    pause = AGAIN_S[0]
            self._closed.wait(pause)
            pause = min(2 * pause, AGAIN_S[1])

    def _read(self, port: Port) -> bool:
        """Read until the port is gone. Whether a beat came at all."""
        codec = self._codec()
        with self._changed:
            self._port, self._beat, self._writer = port, None, self._codec()
            self._freshness = Freshness()
            self.connections += 1
            self._skip = secrets.randbelow(SKIP)
            self._fault = LinkError("silent", f"{self.name} is open and says nothing: is the robot's program running?")
        opened = time.monotonic()
        try:
            while self._port is port and not self._closed.is_set():
                self._hear(codec.feed(port.read()))
                if time.monotonic() - max(opened, self._heard) > GIVE_UP_S:
                    raise OSError("open, and it says nothing: is the robot's program running?")
        except LinkError as error:
            self._lose(port, LinkError(error.fault, f"{self.name}: {error}"))
        except OSError as error:
            self._lose(port, LinkError("cut", f"{self.name}: {error}"))
        heard = self._beat is not None
        port.close()
        return heard

    def _hear(self, beats: list[Beat]) -> None:
        if beats:
            with self._changed:
                self._beat, self._heard = beats[-1], time.monotonic()
                self._freshness.add(self._beat.stamp, self._heard)
                self._changed.notify_all()

    def _lose(self, port: Port, error: LinkError) -> None:
        with self._changed:
            if self._port is port:
                self._port, self._fault = None, error
                self._changed.notify_all()


REFUSALS: Final = {
    "none": "it says that it has read none",
    "stale": "it came too late to be started",
    "shape": "it takes another number of values",
    "not now": "the robot must not move now, such as after its emergency stop: release it there",
}
