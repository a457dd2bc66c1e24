"""openpi's WebSocket protocol, for `openpi-client` unmodified: at `/`, metadata first, then observation and actions.

Which field is the camera and which the instruction depends on the robot: `Fields` lists what is looked for, the first
that is there wins. Actions come as (1, dims): a chunk of one. A refusal is a text frame with problem JSON, which the
client raises as RuntimeError; the connection stays usable.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from edge_vla.serve.codec import openpi as codec
from edge_vla.serve.codec.image import rgb
from edge_vla.serve.codec.values import Value
from edge_vla.serve.fields import at, fields, first, identifier, instruction, missing, number, text, unique
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Observation, RefusedError, Reply, Service
from edge_vla.serve.problem import problem
from edge_vla.serve.sockets import Frame, accept, converse, send

HORIZON: Final = 1  # actions in a chunk


@dataclass(frozen=True)
class Fields:
    """Fields that hold what a policy needs, by preference; `a/b` is a field of that name, or `b` in `a`.

    Images of `chw` are (3, H, W), as ALOHA's client sends them, those of `hwc` (H, W, 3).
    """

    hwc: tuple[str, ...] = (
        "observation/exterior_image_1_left",  # DROID
        "observation/image",  # LIBERO
        "observation/exterior_image_0_left",
        "image",
    )
    chw: tuple[str, ...] = ("images/cam_high",)  # ALOHA
    instruction: tuple[str, ...] = ("prompt", "instruction", "task")


def routes(service: Service, limits: Limits, *, names: Fields = Fields()) -> list[BaseRoute]:
    """`?unnorm_key=` on the address is the default of a connection."""

    async def connection(socket: WebSocket) -> None:
        if await accept(socket, service):
            await send(socket, codec.encode({**dataclasses.asdict(service.metadata), "action_horizon": HORIZON}))
            robot = unique("openpi")
            default = socket.query_params.get("unnorm_key")
            await converse(socket, service, robot, _Dialogue(service, limits, names, robot, default))

    return [WebSocketRoute("/", connection)]


class _Dialogue:
    def __init__(self, service: Service, limits: Limits, names: Fields, robot: str, unnorm_key: str | None) -> None:
        self.service, self.limits, self.names = service, limits, names
        self.robot, self.unnorm_key = robot, unnorm_key
        self.previous_ms: float | None = None

    def decode(self, frame: bytes) -> Value:
        return codec.decode(frame, self.limits)

    async def answer(self, message: Value, received_ns: int) -> Frame:
        reply = await self.service.act(self._observation(fields(message), received_ns))
        total_ms = (time.monotonic_ns() - received_ns) / 1e6
        frame = codec.encode(_answer(reply, self.previous_ms))
        self.previous_ms = total_ms
        return frame

    def refusal(self, error: RefusedError, message: Value) -> Frame:  # noqa: ARG002
        return problem(error).decode("ascii")

    def _observation(self, message: dict[str, Value], received_ns: int) -> Observation:
        names = self.names
        camera = first(message, (*names.hwc, *names.chw))
        if camera is None:
            raise missing("a camera", _paths(message), [*names.hwc, *names.chw])
        prompt = first(message, names.instruction)
        if prompt is None:
            raise missing("an instruction", message, names.instruction)
        return Observation(
            robot=self.robot,
            image=rgb(at(message, camera), camera, self.limits, "CHW" if camera in names.chw else "HWC"),
            instruction=instruction(at(message, prompt), prompt),
            received_ns=received_ns,
            unnorm_key=text(message.get("unnorm_key"), "unnorm_key") or self.unnorm_key,
            observation_id=identifier(message.get("observation_id"), "observation_id"),
            deadline_ms=number(message.get("deadline_ms"), "deadline_ms"),
            age_ms=number(message.get("age_ms"), "age_ms"),
        )


def _paths(message: dict[str, Value]) -> list[str]:
    """Names of the fields, those of maps inside as `a/b`."""
    return [
        f"{name}/{below}" if below else name
        for name, value in message.items()
        for below in (value if isinstance(value, dict) and value else [""])
    ]


def _answer(reply: Reply, previous_ms: float | None) -> dict[str, object]:
    """No array but `actions`: `ActionChunkBroker` takes a row of every array it finds."""
    timing: dict[str, float] = {"infer_ms": reply.infer_ms, "queue_ms": reply.queue_ms}
    timing |= {"age_ms": reply.age_ms, "valid_for_ms": reply.valid_for_ms, "server_recv_ns": reply.received_ns}
    if previous_ms is not None:
        timing["prev_total_ms"] = previous_ms
    return {
        "actions": np.asarray(reply.action, np.float64)[None],
        "policy_timing": {"infer_ms": reply.infer_ms},
        "server_timing": timing,
        "observation_id": reply.observation_id,
        "request_id": reply.request_id,
        "artifact": reply.artifact,
        "unnorm_key": reply.unnorm_key,
    }
