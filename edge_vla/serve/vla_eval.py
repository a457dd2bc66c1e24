"""vla-eval's WebSocket protocol (0.8), for its runners unmodified: `server: {url: ws://HOST:PORT/vla-eval}`.

hello, then per episode: start, observation and action in turn, end. Benchmarks want the gripper's closing as +1, so
OpenVLA's 0 (close) to 1 (open) is turned into that, as vla-eval's own OpenVLA server does; `?gripper=raw` on the
address leaves it. `?unnorm_key=` chooses the statistics, `?camera=` one of several images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from edge_vla.serve.codec import vla_eval as codec
from edge_vla.serve.codec.image import rgb
from edge_vla.serve.codec.values import Value, kind, malformed
from edge_vla.serve.fields import fields, instruction, missing, unique
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Observation, RefusedError, Reply, Service
from edge_vla.serve.problem import problem
from edge_vla.serve.sockets import Frame, accept, converse

PATH: Final = "/vla-eval"
PROTOCOL_VERSION: Final = 1
PARTS: Final = ("type", "payload", "seq", "timestamp")
CAMERA: Final = "agentview"  # where there are several and none is chosen: LIBERO's
ARM: Final = 6  # x, y, z and three rotations: what stands before the gripper
RAW: Final = "raw"
CLOSE_POSITIVE: Final = "close-positive"


def routes(service: Service, limits: Limits) -> list[BaseRoute]:
    async def connection(socket: WebSocket) -> None:
        if await accept(socket, service):
            query, robot = socket.query_params, unique("vla-eval")
            options = _Options(query.get("unnorm_key"), query.get("camera"), query.get("gripper", CLOSE_POSITIVE))
            await converse(socket, service, robot, _Dialogue(service, limits, robot, options))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok" if service.ready else "loading"}, 200 if service.ready else 503)

    return [WebSocketRoute(PATH, connection), Route("/health", health)]


@dataclass(frozen=True)
class _Options:
    unnorm_key: str | None
    camera: str | None
    gripper: str


@dataclass(frozen=True)
class _Message:
    kind: str
    payload: dict[str, Value]
    seq: int


class _Dialogue:
    def __init__(self, service: Service, limits: Limits, robot: str, options: _Options) -> None:
        self.service, self.limits, self.robot, self.options = service, limits, robot, options

    def decode(self, frame: bytes) -> Value:
        return codec.decode(frame, self.limits)

    async def answer(self, message: Value, received_ns: int) -> Frame | None:
        asked = _read(message)
        if asked.kind == "hello":
            return _pack("hello", self._hello(), asked.seq)
        if asked.kind == "observation":
            reply = await self.service.act(self._observation(asked, received_ns))
            return _pack("action", self._action(reply), asked.seq)
        if asked.kind in ("episode_start", "episode_end"):
            self.service.reset(self.robot)
        elif asked.kind != "error":  # an error of the client's is its own business
            raise malformed(
                f"a message of type {asked.kind[:20]!a}", "hello, observation, episode_start or episode_end"
            )
        return None

    def refusal(self, error: RefusedError, message: Value) -> Frame:
        seq = message.get("seq") if isinstance(message, dict) else None
        text = f"{error.code.value}: {error.detail} (request {error.request_id})"
        return _pack(
            "error", {"error": text, "problem": problem(error).decode("ascii")}, seq if type(seq) is int else 0
        )

    def _hello(self) -> dict[str, object]:
        version = self.service.metadata.version
        hello: dict[str, object] = {"harness_version": f"edge-vla {version}", "protocol_version": PROTOCOL_VERSION}
        hello |= {"model_server": "edge-vla", "capabilities": {}, "artifact": self.service.metadata.artifact}
        hello["observation_spec"] = {
            "image": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
            "language": {"name": "language", "dims": 0, "format": "language"},
        }
        hello["action_spec"] = self._action_spec()
        return hello

    def _action_spec(self) -> dict[str, object]:
        if self.service.metadata.dims != ARM + 1:
            return {"action": {"name": "action", "dims": self.service.metadata.dims, "format": "raw"}}
        gripper: dict[str, object] = {"name": "gripper", "dims": 1, "format": "raw"}
        if self.options.gripper != RAW:
            gripper |= {"format": "binary_close_positive", "range": [-1, 1]}
        return {
            "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
            "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
            "gripper": gripper,
        }

    def _observation(self, asked: _Message, received_ns: int) -> Observation:
        name, image = self._camera(asked.payload)
        if "task_description" not in asked.payload:
            raise missing("'task_description'", asked.payload, ["task_description"])
        return Observation(
            robot=self.robot,
            image=rgb(image, name, self.limits),
            instruction=instruction(asked.payload["task_description"], "task_description"),
            received_ns=received_ns,
            unnorm_key=self.options.unnorm_key,
            observation_id=asked.seq,
        )

    def _camera(self, payload: dict[str, Value]) -> tuple[str, Value]:
        """The image that was chosen, the only one, or LIBERO's front view."""
        images = payload.get("images")
        if isinstance(images, np.ndarray):
            return "images", images
        if not isinstance(images, dict) or not images:
            raise missing("images by camera", payload, ["images"])
        chosen = self.options.camera or (next(iter(images)) if len(images) == 1 else CAMERA)
        if chosen not in images:
            raise missing(f"the camera {chosen[:40]!a}", images, [f"{PATH}?camera=NAME"])
        return f"images/{chosen}", images[chosen]

    def _action(self, reply: Reply) -> dict[str, object]:
        action = np.array(reply.action, np.float64)
        if self.options.gripper != RAW and len(action) == ARM + 1:
            action = closing_positive(action)
        timing = {"age_ms": reply.age_ms, "valid_for_ms": reply.valid_for_ms}
        timing |= {"queue_ms": reply.queue_ms, "infer_ms": reply.infer_ms, "server_recv_ns": reply.received_ns}
        return {"actions": action, "server_timing": timing, "request_id": reply.request_id}


def closing_positive(action: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gripper from 0 (close) … 1 (open) to +1 (close) or -1 (open)."""
    return np.append(action[:-1], -np.sign(2 * action[-1] - 1))


def _read(message: Value) -> _Message:
    found = fields(message)
    for name in PARTS:
        if name not in found:
            raise missing(f"'{name}'", found, PARTS)
    said, payload, seq = found["type"], found["payload"], found["seq"]
    if not isinstance(said, str) or not isinstance(payload, dict) or type(seq) is not int:
        raise malformed(f"{kind(said)}, {kind(payload)} and {kind(seq)}", "type as text, payload a map, seq a number")
    return _Message(said, payload, seq)


def _pack(said: str, payload: dict[str, object], seq: int) -> bytes:
    return codec.encode({"type": said, "payload": payload, "seq": seq, "timestamp": time.time()})
