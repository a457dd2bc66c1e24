"""What passes between this machine and a robot's own: commands one way, beats the other; docs/act.md has every byte.

A beat carries the robot's clock, a command the newest beat's time and how long after it the command may start. So the
robot can tell how old a command is by its own clock alone, and no two clocks are ever compared. Pure: bytes in and out,
no socket, no clock. `edge_vla/robot/receiver.py`, the robot's end, is written apart from this file on purpose.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from edge_vla.robot.faces import Kind, LinkError

Verdict = Literal["none", "taken", "stale", "shape", "not now"]
"""What became of a command: `stale`: too old to start; `shape`: not as many values as the robot takes; `not now`: the
robot's own reason, such as its emergency stop."""

MAGIC: Final = b"EV"
VERSION: Final = 1
KINDS: Final[dict[Kind, int]] = {"action": 1, "hold": 2, "stop": 3}
BEAT: Final = 16
VERDICTS: Final[tuple[Verdict, ...]] = ("none", "taken", "stale", "shape", "not now")
HEAD: Final = struct.Struct("<2sBBHHIIQI")  # magic, version, kind, bytes, values, number, valid, echo, age
BEAT_BODY: Final = struct.Struct("<2sBBHBBIQHH")  # magic, version, kind, bytes, verdict, state, number, stamp, dims, 0
MOVING, READY = 1, 2  # of a beat's state
CRC: Final = struct.Struct("<I")
NO_AGE: Final = 0xFFFFFFFF
MOST_NUMBER: Final = 0xFFFFFFFF
MOST_VALUES: Final = 64
MOST: Final = HEAD.size + 8 * MOST_VALUES + CRC.size  # bytes of a message
LONGEST_LINE: Final = 8192
CRC_MARK: Final = b',"crc":"'


@dataclass(frozen=True)
class Order:
    """A command on the wire. `valid_us` microseconds after the beat stamped `echo` it may no longer be started.

    `age_us`: how old its picture is, None for `hold` and `stop`; for the robot's log.
    """

    kind: Kind
    number: int
    valid_us: int
    echo: int
    age_us: int | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Beat:
    """What a robot says of itself. `number` and `verdict` are of the last command that it read; `stamp` is its clock in
    microseconds, `dims` how many values it takes. Not `ready`: it would refuse whatever comes."""

    number: int
    verdict: Verdict
    stamp: int
    dims: int
    moving: bool
    ready: bool


class Codec(Protocol):
    """One way to write commands and to read beats from a stream of bytes."""

    def pack(self, order: Order) -> bytes: ...

    def feed(self, data: bytes) -> list[Beat]:
        """The beats that these bytes complete. LinkError `malformed` where the stream cannot be read any further."""


class Binary:
    """Messages one after another, each with its length. A byte that is wrong ends the connection."""

    def __init__(self) -> None:
        self._kept = b""

    def pack(self, order: Order) -> bytes:
        return packed(order)

    def feed(self, data: bytes) -> list[Beat]:
        self._kept += data
        found = []
        while len(self._kept) >= 6:
            size = int.from_bytes(self._kept[4:6], "little")
            if self._kept[:2] != MAGIC or not BEAT_BODY.size < size <= MOST:
                raise malformed()
            if len(self._kept) < size:
                break
            beat = unpacked(self._kept[:size])
            if beat is None:
                raise malformed()
            found.append(beat)
            self._kept = self._kept[size:]
        return found


class Packets:
    """Messages without zeros (COBS), a zero after each: what is damaged is skipped, the next zero begins anew."""

    def __init__(self) -> None:
        self._kept = b""
        self.skipped = 0

    def pack(self, order: Order) -> bytes:
        return b"\0" + stuffed(packed(order)) + b"\0"

    def feed(self, data: bytes) -> list[Beat]:
        *packets, self._kept = (self._kept + data).split(b"\0")
        self._kept = self._kept[-2 * MOST :]
        found = []
        for packet in filter(None, packets):
            message = unstuffed(packet)
            beat = None if message is None else unpacked(message)
            if beat is None:
                self.skipped += 1
            else:
                found.append(beat)
        return found


class Lines:
    """A JSON object a line, its last key the CRC-32 of all before it. A line that is wrong ends the connection."""

    def __init__(self) -> None:
        self._kept = b""

    def pack(self, order: Order) -> bytes:
        fields = {
            "v": VERSION,
            "kind": order.kind,
            "number": order.number,
            "valid_us": order.valid_us,
            "echo": order.echo,
            "age_us": order.age_us,
            "values": list(order.values),
        }
        body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()[:-1]
        return body + CRC_MARK + b"%08x" % zlib.crc32(body) + b'"}\n'

    def feed(self, data: bytes) -> list[Beat]:
        *lines, self._kept = (self._kept + data).split(b"\n")
        if len(self._kept) > LONGEST_LINE:
            raise malformed()
        return [_beat_of(line) for line in lines]


def packed(order: Order) -> bytes:
    """A command's message. ValueError for what is no command."""
    if not 0 < len(order.values) <= MOST_VALUES or not all(map(math.isfinite, order.values)):
        raise ValueError(f"a command has 1 to {MOST_VALUES} finite values, got {order.values}")
    size = HEAD.size + 8 * len(order.values) + CRC.size
    age = NO_AGE if order.age_us is None else min(order.age_us, NO_AGE - 1)
    kind, count = KINDS[order.kind], len(order.values)
    head = HEAD.pack(MAGIC, VERSION, kind, size, count, order.number, order.valid_us, order.echo, age)
    body = head + struct.pack(f"<{count}d", *order.values)
    return body + CRC.pack(zlib.crc32(body))


def unpacked(message: bytes) -> Beat | None:
    """A beat's message; None for anything else."""
    if len(message) != BEAT_BODY.size + CRC.size or CRC.unpack(message[-4:])[0] != zlib.crc32(message[:-4]):
        return None
    magic, version, kind, size, verdict, state, number, stamp, dims, _ = BEAT_BODY.unpack(message[:-4])
    if (magic, version, kind, size) != (MAGIC, VERSION, BEAT, len(message)) or verdict >= len(VERDICTS):
        return None
    return Beat(number, VERDICTS[verdict], stamp, dims, bool(state & MOVING), bool(state & READY))


def stuffed(data: bytes) -> bytes:
    """COBS: the same without zeros. Each run of up to 254 other bytes has its length, plus one, before it."""
    out = bytearray()
    for piece in data.split(b"\0"):
        while len(piece) >= 254:
            out += b"\xff" + piece[:254]
            piece = piece[254:]
        out += bytes((len(piece) + 1,)) + piece
    return bytes(out)


def unstuffed(data: bytes) -> bytes | None:
    """The inverse of `stuffed`; None for what it never makes."""
    out, at = bytearray(), 0
    while at < len(data):
        length = data[at]
        piece = data[at + 1 : at + length]
        if length == 0 or len(piece) != length - 1 or 0 in piece:
            return None
        out += piece
        at += length
        if length < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def malformed() -> LinkError:
    return LinkError(
        "malformed",
        "the robot sent what is no beat: is this its address, and the same protocol on both ends (tcp or tcp+json)?",
    )


def _beat_of(line: bytes) -> Beat:
    body, mark, rest = line.rpartition(CRC_MARK)
    if not mark or rest != b'%08x"}' % zlib.crc32(body):
        raise malformed()
    try:
        fields = json.loads(body + b"}")
        if fields["v"] != VERSION or fields["kind"] != "beat" or fields["verdict"] not in VERDICTS:
            raise malformed()
        numbers: Sequence[object] = [fields[name] for name in ("number", "stamp", "dims")]
        for number, most in zip(numbers, (MOST_NUMBER, 2**64 - 1, 2**16 - 1), strict=True):
            if type(number) is not int or not 0 <= number <= most:
                raise malformed()
        moving, ready = (fields[name] is True for name in ("moving", "ready"))
        return Beat(fields["number"], fields["verdict"], fields["stamp"], fields["dims"], moving, ready)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise malformed() from error
