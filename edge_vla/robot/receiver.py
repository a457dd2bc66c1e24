"""The robot's end of `edge-vla act --to tcp:, tcp+json: or serial:`. One file, standard library: copy it there.

    python3 receiver.py --listen 0.0.0.0:5555 --dims 7            # shows what comes; add --json for tcp+json:
    python3 receiver.py --port /dev/ttyS0 --baud 115200 --dims 7  # a serial port

or, in a robot's own program, `serve(listener, Receiver(7), act, rest)`. A command is handed to `act` only whole, once,
and while it may still be started by this machine's own clock; when no fresh one comes, `rest` is called. Knows no
motor. Not a safety-rated function.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

HEAD = struct.Struct("<2sBBHHIIQI")  # "EV", 1, kind, bytes, values, number, valid_us, echo, age_us
KINDS = {1: "action", 2: "hold", 3: "stop"}
VERDICTS = ("none", "taken", "stale", "shape", "not now")
MOST = 1024  # bytes of a message
LONGEST_LINE = 8192
NO_AGE = 0xFFFFFFFF


class Command(NamedTuple):
    """`kind`: action, hold or stop. `values` in the robot's units. `age_us` of the picture, None without one."""

    kind: str
    number: int
    valid_us: int
    echo: int
    age_us: int | None
    values: tuple[float, ...]


class Receiver:
    """Bytes in, commands to start now out. `framing`: binary (tcp:), json (tcp+json:) or cobs (serial:).

    Set `ready` False while the robot must not move, such as after its emergency stop.
    """

    def __init__(self, dims: int, framing: str = "binary", clock: Callable[[], float] = time.monotonic) -> None:
        self.dims, self.framing, self._clock = dims, framing, clock
        self._base = int.from_bytes(os.urandom(6), "little")  # no time of an earlier life looks like one of this
        self.number, self.verdict, self.ready, self.moving = 0, "none", True, False
        self.refused: dict[str, int] = {}
        self.connect()

    def connect(self) -> None:
        """A connection begins: half a message of the last one, and every command that was made for it, is void."""
        self._kept, self._since = b"", self.stamp()

    def stamp(self) -> int:
        return self._base + int(self._clock() * 1e6)

    def feed(self, data: bytes) -> list[Command]:
        """What may be started now. ValueError: give the connection up (never with cobs, which begins anew)."""
        return [command for command in self._messages(data) if self._may_start(command)]

    def beat(self) -> bytes:
        """What to send every 50 ms, and at once after each `feed` that brought a command."""
        verdict, state, stamp = VERDICTS.index(self.verdict), self.moving + 2 * self.ready, self.stamp()
        if self.framing == "json":
            fields = {"v": 1, "kind": "beat", "verdict": self.verdict, "moving": self.moving, "ready": self.ready}
            fields |= {"number": self.number, "stamp": stamp, "dims": self.dims}
            body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
            return body + b',"crc":"%08x"}\n' % zlib.crc32(body)
        body = struct.pack("<2sBBHBBIQHH", b"EV", 1, 16, 28, verdict, state, self.number, stamp, self.dims, 0)
        body += struct.pack("<I", zlib.crc32(body))
        return b"\0" + to_cobs(body) + b"\0" if self.framing == "cobs" else body

    def _may_start(self, command: Command) -> bool:
        if command.number <= self.number:  # doubled, or sent again because our beat was lost
            self.refused["doubled"] = self.refused.get("doubled", 0) + 1
            return False
        self.number = command.number
        fresh = self._since <= command.echo <= self.stamp() <= command.echo + command.valid_us
        shape = "taken" if len(command.values) == self.dims else "shape"
        self.verdict = "stale" if not fresh else shape if self.ready else "not now"
        if self.verdict != "taken":
            self.refused[self.verdict] = self.refused.get(self.verdict, 0) + 1
        return self.verdict == "taken"

    def _messages(self, data: bytes) -> Iterator[Command]:
        self._kept += data
        if self.framing == "binary":
            while len(self._kept) >= 6:
                size = int.from_bytes(self._kept[4:6], "little")
                if self._kept[:2] != b"EV" or not HEAD.size < size <= MOST:
                    raise ValueError("no message of this protocol")
                if len(self._kept) < size:
                    return
                message, self._kept = self._kept[:size], self._kept[size:]
                yield from_binary(message)
            return
        *parts, self._kept = self._kept.split(b"\n" if self.framing == "json" else b"\0")
        if len(self._kept) > LONGEST_LINE:
            self._kept = b""
            if self.framing == "json":
                raise ValueError("a line without an end")
        for part in parts:
            if self.framing == "json":
                yield from_line(part)
            elif part:
                try:
                    yield from_binary(from_cobs(part))
                except ValueError:
                    self.refused["damaged"] = self.refused.get("damaged", 0) + 1


def from_binary(message: bytes) -> Command:
    if len(message) < HEAD.size + 4 or zlib.crc32(message[:-4]) != int.from_bytes(message[-4:], "little"):
        raise ValueError("damaged")
    magic, version, kind, size, count, number, valid, echo, age = HEAD.unpack(message[: HEAD.size])
    if magic != b"EV" or version != 1 or kind not in KINDS or not size == len(message) == HEAD.size + 8 * count + 4:
        raise ValueError("no command of version 1")
    values = struct.unpack(f"<{count}d", message[HEAD.size : -4])
    return sound(Command(KINDS[kind], number, valid, echo, None if age == NO_AGE else age, values))


def from_line(line: bytes) -> Command:
    body, mark, rest = line.rpartition(b',"crc":"')
    if not mark or rest != b'%08x"}' % zlib.crc32(body):
        raise ValueError("damaged")
    try:
        raw = json.loads(body + b"}")
        values = raw["values"]
        if raw.pop("v", None) != 1 or raw["kind"] not in KINDS.values() or type(values) is not list:
            raise ValueError("no command of version 1")
        if any(type(value) not in (int, float) for value in values):
            raise ValueError("a value that is no number")
        return sound(Command(**{**raw, "values": tuple(map(float, values))}))
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError("no command of version 1") from error


def sound(command: Command) -> Command:
    whole = (command.number, command.valid_us, command.echo, command.age_us or 0)
    if any(type(one) is not int or one < 0 for one in whole):
        raise ValueError("a number that is none")
    if not all(map(math.isfinite, command.values)):
        raise ValueError("a value that is not finite")
    return command


def to_cobs(data: bytes) -> bytes:
    """For messages under 254 bytes: each zero becomes the distance to the next."""
    return b"".join(bytes([len(piece) + 1]) + piece for piece in data.split(b"\0"))


def from_cobs(data: bytes) -> bytes:
    out, at = b"", 0
    while at < len(data):
        block = data[at + 1 : at + data[at]]
        if len(block) != data[at] - 1:
            raise ValueError("damaged")
        out += block + (b"\0" if data[at] < 255 and at + data[at] < len(data) else b"")
        at += data[at]
    return out


def serve(
    source: socket.socket | int,
    receiver: Receiver,
    act: Callable[[Command], None],
    rest: Callable[[str], None],
    *,
    lapse_s: float = 0.6,
    beat_s: float = 0.05,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Serve a listening socket, one connection at a time, or an open serial port's descriptor, until `ended`.

    `act(command)` gives values to the motors and returns at once. `rest(why)` brings them to rest: `lapse_s` after the
    last command, or when the connection is gone. A connection that is opened while the robot moves is closed again.
    """
    listener = source if isinstance(source, socket.socket) else None
    channel = None if isinstance(source, socket.socket) else source
    last = due = 0.0

    def come_to_rest(why: str) -> None:
        if receiver.moving:
            receiver.moving = False
            rest(why)

    try:
        while not ended():
            now = time.monotonic()
            if receiver.moving and now - last > lapse_s:
                come_to_rest(f"no fresh command for {1e3 * (now - last):.0f} ms")
            watched = [one for one in (listener, channel) if one is not None]
            readable, _, _ = select.select(watched, [], [], max(0.0, min(due - now, beat_s)))
            if listener is not None and listener in readable:
                channel, due = _accepted(listener, channel, receiver), 0.0
                continue
            try:
                heard = receiver.number
                if channel is not None and channel in readable:
                    for command in receiver.feed(_read(channel)):
                        receiver.moving, last = True, time.monotonic()
                        act(command)
                if receiver.number != heard or time.monotonic() >= due:
                    due = time.monotonic() + beat_s
                    _write(channel, receiver.beat())
            except (OSError, ValueError) as error:
                come_to_rest(f"the connection is gone: {error}")
                if listener is None:
                    raise
                _close(channel)
                channel = None
    finally:  # also where `act` raises what is no lost connection
        come_to_rest("the receiver ended")
        if listener is not None:
            _close(channel)


def _accepted(listener: socket.socket, channel: int | None, receiver: Receiver) -> int | None:
    """The connection to serve from now on: the new one, unless the robot moves on behalf of another."""
    connection, _ = listener.accept()
    if receiver.moving:
        connection.close()
        return channel
    _close(channel)
    receiver.connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection.detach()


def _read(channel: int) -> bytes:
    data = os.read(channel, 8192)
    if not data:
        raise OSError("closed by the other end")
    return data


def _write(channel: int | None, data: bytes) -> None:
    """Never waits: a beat is left out where the other end does not read."""
    if channel is not None and select.select([], [channel], [], 0)[1] and os.write(channel, data) != len(data):
        raise OSError("the other end does not read")


def _close(channel: int | None) -> None:
    if channel is not None:
        os.close(channel)


def open_port(path: str, baud: int) -> int:
    """A serial port as bytes, nothing changed or echoed."""
    import termios
    import tty

    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ValueError(f"--baud {baud}: no speed of a serial port, such as 115200")
    port = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(port)
        settings = termios.tcgetattr(port)
        settings[4] = settings[5] = speed
        termios.tcsetattr(port, termios.TCSANOW, settings)
    except termios.error as error:
        os.close(port)
        raise OSError(*error.args, path) from error
    return port


def listening(where: str) -> socket.socket:
    """ValueError for what is no address, OSError where it is in use."""
    host, _, port = where.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"--listen {where}: expected HOST:PORT, such as 0.0.0.0:5555")
    try:
        return socket.create_server((host, int(port)))
    except OSError as error:
        raise OSError(f"--listen {where}: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what edge-vla act sends, as a robot would take it.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen", metavar="HOST:PORT")
    where.add_argument("--port", metavar="/dev/ttyX")
    parser.add_argument("--baud", type=int, default=115200)
    parser.add_argument("--dims", type=int, required=True, help="values of an action")
    parser.add_argument("--json", action="store_true", help="for tcp+json:")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script that starts it behind `&` has it ignored else

    def show(what: str) -> None:
        sys.stdout.write(what + "\n")
        sys.stdout.flush()

    if not 0 < given.dims <= 64:
        parser.error(f"--dims {given.dims}: expected 1 to 64 values of an action")
    receiver = Receiver(given.dims, "cobs" if given.port else "json" if given.json else "binary")
    try:
        source = open_port(given.port, given.baud) if given.port else listening(given.listen)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        serve(source, receiver, lambda command: show(json.dumps(command._asdict())), lambda why: show("rest: " + why))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
