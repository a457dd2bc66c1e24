"""Our own WebSocket protocol, `/v1/robot?robot=NAME`: an observation a message, and how fresh its action is.

Byte by byte in docs/serve.md. A robot may send its next observation before the last was answered: the newest wins, and
every observation gets its own reply. A robot's newest connection closes its older one.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgpack
import numpy as np
from numpy.typing import NDArray
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from edge_vla.serve.codec.image import compressed
from edge_vla.serve.codec.packed import text_keys, unpack
from edge_vla.serve.codec.values import Value, kind, malformed
from edge_vla.serve.fields import fields, identifier, instruction, missing, number, text, unique
from edge_vla.serve.limits import CHANNELS, Limits, check_sides
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply, Service
from edge_vla.serve.sockets import Frame, accept, converse, send

PATH: Final = "/v1/robot"
PROTOCOL: Final = 1
REPLACED: Final = 4409  # our close code: the robot has connected anew


def routes(service: Service, limits: Limits) -> list[BaseRoute]:
    owners: dict[str, asyncio.Task[None]] = {}

    async def connection(socket: WebSocket) -> None:
        robot = socket.query_params.get("robot") or unique("robot")
        if len(robot) > limits.robot:
            robot = unique("robot")
        if not await accept(socket, service):
            return
        await send(socket, greeting(service.metadata, robot))
        older = owners.get(robot)
        if older is not None:
            older.cancel()
            await asyncio.wait({older})
        dialogue = NativeDialogue(service, limits, robot)
        task = owners[robot] = asyncio.create_task(converse(socket, service, robot, dialogue))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            if owners.get(robot) is task:
                del owners[robot]
        if task.cancelled():
            await socket.close(REPLACED, "this robot has connected anew")
        else:
            task.result()

    return [WebSocketRoute(PATH, connection)]


class NativeDialogue:
    """`sockets.Dialogue` of one robot's connection."""

    def __init__(self, service: Service, limits: Limits, robot: str) -> None:
        self.service, self.limits, self.robot = service, limits, robot

    def decode(self, frame: bytes) -> Value:
        return unpack(frame, self.limits, text_keys)

    async def answer(self, message: Value, received_ns: int) -> Frame | None:
        asked = fields(message)
        kind_of = asked.get("type")
        if kind_of == "observation":
            return action(await self.service.act(await self._observation(asked, received_ns)))
        if kind_of == "reset":
            self.service.reset(self.robot)
            return packed({"type": "reset", "id": identifier(asked.get("id"), "id")})
        raise malformed(f"a message of type {kind_of!r:.40}", "'observation' or 'reset'")

    def refusal(self, error: RefusedError, message: Value) -> Frame:
        named = message.get("id") if isinstance(message, dict) else None
        return packed(
            {
                "type": "error",
                "id": named if type(named) is int or isinstance(named, str) else None,
                "code": error.code.value,
                "detail": error.detail,
                "request_id": error.request_id,
                "retry_after_s": error.retry_after_s,
            }
        )

    async def _observation(self, asked: dict[str, Value], received_ns: int) -> Observation:
        for name in ("image", "instruction"):
            if name not in asked:
                raise missing(f"'{name}'", asked, [name])
        form = asked.get("format", "raw")
        if form == "raw":
            image = pixels(asked["image"], asked.get("shape"), self.limits)
        else:
            image = await asyncio.to_thread(compressed, asked["image"], form, self.limits)
        return Observation(
            robot=self.robot,
            image=image,
            instruction=instruction(asked["instruction"], "instruction"),
            received_ns=received_ns,
            unnorm_key=text(asked.get("unnorm_key"), "unnorm_key"),
            observation_id=identifier(asked.get("id"), "id"),
            deadline_ms=number(asked.get("deadline_ms"), "deadline_ms"),
            age_ms=number(asked.get("age_ms"), "age_ms"),
        )


def pixels(data: Value, shape: Value, limits: Limits) -> NDArray[np.uint8]:
    """Raw bytes of `shape` [H, W, 3] as an array that shares them; the shape is checked before it is believed."""
    if not isinstance(data, bytes):
        raise malformed(f"{kind(data)} as a raw image", "its bytes, rows from the top, red, green, blue")
    if not isinstance(shape, list) or len(shape) != CHANNELS or not all(type(size) is int for size in shape):
        raise RefusedError(Code.IMAGE_SHAPE, f"shape: got {shape!r:.60}, expected [height, width, 3]")
    sizes = [size for size in shape if isinstance(size, int)]
    check_sides(sizes, limits)
    height, width, channels = sizes
    if len(data) != height * width * channels:
        raise RefusedError(Code.IMAGE_SHAPE, f"image: got {len(data)} bytes, expected {height} x {width} x 3 of uint8")
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def greeting(metadata: Metadata, robot: str) -> bytes:
    """The first message of a connection."""
    return packed(
        {
            "type": "hello",
            "protocol": PROTOCOL,
            "robot": robot,
            "artifact": metadata.artifact,
            "model": metadata.model,
            "unnorm_keys": list(metadata.unnorm_keys),
            "default_unnorm_key": metadata.default_unnorm_key,
            "dims": metadata.dims,
            "image_size": metadata.image_size,
            "preprocess": metadata.preprocess,
            "max_image_pixels": metadata.max_image_pixels,
            "version": metadata.version,
        }
    )


def action(reply: Reply) -> bytes:
    """A reply with all that says how fresh it is. Milliseconds, float64."""
    return packed(
        {
            "type": "action",
            "id": reply.observation_id,
            "robot": reply.robot,
            "action": reply.action.tolist(),
            "tokens": list(reply.tokens),
            "margins": list(reply.margins),
            "unnorm_key": reply.unnorm_key,
            "age_ms": reply.age_ms,
            "valid_for_ms": reply.valid_for_ms,
            "queue_ms": reply.queue_ms,
            "infer_ms": reply.infer_ms,
            "server_recv_ns": reply.received_ns,
            "artifact": reply.artifact,
            "request_id": reply.request_id,
        }
    )


def packed(message: dict[str, object]) -> bytes:
    data: bytes = msgpack.packb(message)
    return data
