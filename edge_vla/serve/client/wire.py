"""The native protocol's messages as a robot writes and reads them; docs/serve.md has them byte by byte.

Times are `time.monotonic()` seconds of this machine: no clock of the server's is ever compared with ours.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.client.errors import ProtocolError, RefusedError, StaleError
from edge_vla.serve.client.resize import resize

Message = dict[str, object]
MIN_SIDE = 16  # pixels: less is the server's to refuse
STRETCH = "resize-naive"  # what the server calls it
SIGNS = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"))


@dataclass(frozen=True)
class Hello:
    """What the server says of itself when a robot connects."""

    artifact: str
    model: str
    unnorm_keys: tuple[str, ...]
    default_unnorm_key: str
    dims: int
    image_size: int
    preprocess: str
    version: str


@dataclass(frozen=True, eq=False)
class Action:
    """`values` (dims,) float64 in robot units. It may be started until `valid_until`, and not after.

    `age_ms` is the image's age when the action arrived here, `round_trip_ms` the time since it was asked for.
    `server_recv_ns` is when the observation reached the server, by a clock of its own: two of them may be compared.
    """

    values: NDArray[np.float64]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    unnorm_key: str
    observation_id: int
    request_id: str
    artifact: str
    age_ms: float
    valid_until: float
    queue_ms: float
    infer_ms: float
    server_recv_ns: int
    round_trip_ms: float

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self.valid_until


@dataclass(frozen=True)
class Asked:
    """An observation that was sent: its number, when, and how old its image was by then."""

    number: int
    sent: float
    age_ms: float


def observation(
    image: NDArray[np.uint8] | bytes,
    instruction: str,
    asked: Asked,
    *,
    deadline_ms: float,
    unnorm_key: str | None,
) -> bytes:
    """An observation's message. `image` is (H, W, 3) uint8 RGB, or the bytes of a JPEG or PNG file."""
    message: Message = {
        "type": "observation",
        "id": asked.number,
        "instruction": instruction,
        "deadline_ms": deadline_ms,
        "age_ms": asked.age_ms,
    }
    if unnorm_key is not None:
        message["unnorm_key"] = unnorm_key
    if isinstance(image, bytes):
        message |= {"image": image, "format": _form(image)}
    else:
        message |= {"image": np.ascontiguousarray(image).data.cast("B"), "shape": list(image.shape)}
    return pack(message)


def pack(message: Message) -> bytes:
    data: bytes = msgpack.packb(message)
    return data


def read(frame: object) -> Message:
    """A message of the server's. Raises ProtocolError for anything else."""
    if not isinstance(frame, bytes):
        raise ProtocolError("the server sent text, expected a binary message: is this the native protocol's address?")
    try:
        message = msgpack.unpackb(frame)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"the server sent what is no msgpack: {error}") from error
    if not isinstance(message, dict) or message.get("type") not in ("hello", "action", "error", "reset"):
        raise ProtocolError("the server sent a message that is not of this protocol")
    return message


def smaller(image: NDArray[np.uint8], server: Hello) -> NDArray[np.uint8]:
    """The image as the policy resizes it, where that is known bit for bit and is less to send; else as it is."""
    size, (height, width, channels) = server.image_size, image.shape
    known = server.preprocess == STRETCH and channels == 3 and min(height, width) >= MIN_SIDE
    return resize(image, size) if known and height * width > size * size else image


def hello(message: Message) -> Hello:
    try:
        if message["type"] != "hello" or message["protocol"] != 1:
            raise ProtocolError(f"the server speaks protocol {message.get('protocol')!r}, this client 1: update one")
        keys = message["unnorm_keys"]
        if not isinstance(keys, list):
            raise ProtocolError("the server's greeting lists no data sets")
        return Hello(
            artifact=str(message["artifact"]),
            model=str(message["model"]),
            unnorm_keys=tuple(map(str, keys)),
            default_unnorm_key=str(message["default_unnorm_key"]),
            dims=_whole(message["dims"]),
            image_size=_whole(message["image_size"]),
            preprocess=str(message["preprocess"]),
            version=str(message["version"]),
        )
    except KeyError as error:
        raise ProtocolError(f"the server's greeting has no {error}") from error


def action(message: Message, asked: Asked, robot: str) -> Action:
    """The action that answers `asked`. ProtocolError for one that is not for it, StaleError for one that is too old."""
    now = time.monotonic()
    try:
        values = np.array(message["action"], dtype=np.float64)
        age, valid_for = _number(message["age_ms"]), _number(message["valid_for_ms"])
        found = Action(
            values=values,
            tokens=tuple(map(_whole, _items(message["tokens"]))),
            margins=tuple(map(_number, _items(message["margins"]))),
            unnorm_key=str(message["unnorm_key"]),
            observation_id=asked.number,
            request_id=str(message["request_id"]),
            artifact=str(message["artifact"]),
            age_ms=asked.age_ms + 1e3 * (now - asked.sent),
            valid_until=asked.sent + (age + valid_for - asked.age_ms) / 1e3,
            queue_ms=_number(message["queue_ms"]),
            infer_ms=_number(message["infer_ms"]),
            server_recv_ns=_whole(message["server_recv_ns"]),
            round_trip_ms=1e3 * (now - asked.sent),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"an action that cannot be read: {error!r}") from error
    if message.get("robot") != robot or values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ProtocolError("an action that is not this robot's, or not finite")
    if not found.fresh:
        raise StaleError(f"the image is {found.age_ms:.0f} ms old by now, at most {age + valid_for:.0f} ms are allowed")
    return found


def refusal(message: Message) -> RefusedError:
    after = message.get("retry_after_s")
    return RefusedError(
        str(message.get("code")),
        str(message.get("detail")),
        str(message.get("request_id")),
        float(after) if isinstance(after, (int, float)) else None,
    )


def denial(status: int, body: bytes) -> RefusedError:
    """What a server that does not let us connect says: problem JSON, or whatever stands between us."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return refusal(problem)
    return RefusedError(f"HTTP_{status}", "the handshake was refused: is this the address of an edge-vla server?")


def _form(image: bytes) -> str:
    for sign, form in SIGNS:
        if image.startswith(sign):
            return form
    raise ValueError("bytes must be those of a JPEG or PNG file; pass pixels as an array (H, W, 3) uint8")


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError("expected a finite number")
    return float(value)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("expected a whole number")
    return value
