"""OpenVLA's REST protocol: `POST /act` as its `deploy.py` answers it, and as its clients send it, unmodified.

The body is `{"image", "instruction", "unnorm_key"}` in json-numpy's form, plain or double-encoded; the reply a float64
array in the same. How fresh it is stands in `X-EdgeVLA-*` headers, where old clients do not look. A refusal is problem
JSON with its status; `exact` gives `deploy.py`'s 200 with `"error"` instead, for clients that know no other.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edge_vla.serve.codec import json_numpy
from edge_vla.serve.codec.image import rgb
from edge_vla.serve.codec.values import Value, malformed, too_large
from edge_vla.serve.fields import instruction, missing, off_loop, text, unique
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, Observation, RefusedError, Reply, Service
from edge_vla.serve.problem import counted, response

T = TypeVar("T")
PREFIX: Final = "X-EdgeVLA-"
JSON: Final = "application/json"
UNREADABLE: Final = 422  # what FastAPI answers when a body is no JSON


def routes(service: Service, limits: Limits, *, exact: bool = False) -> list[BaseRoute]:
    async def act(request: Request) -> Response:
        return await _act(request, service, limits, exact=exact)

    return [Route("/act", act, methods=["POST"])]


async def _act(request: Request, service: Service, limits: Limits, *, exact: bool) -> Response:
    named = request.headers.get(f"{PREFIX}Robot")
    robot = named or unique("rest")
    decoded: json_numpy.Request | None = None
    try:
        body = await _body(request, limits)
        received = time.monotonic_ns()
        decoded = await off_loop(len(body), lambda: json_numpy.decode_request(body, limits))
        observation = _observation(decoded.payload, request, robot, received, limits)
        reply = await _while_connected(request, service.act(observation))
    except RefusedError as error:
        error = counted(service, error)
        return _exact(error, readable=decoded is not None) if exact else response(error)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it
    finally:
        if not named:  # nothing can come back to a name that nobody knows
            service.leave(robot)
    values = np.asarray(reply.action, np.float64)
    return Response(json_numpy.encode_reply(values, doubled=decoded.doubled), 200, _headers(reply), JSON)


async def _body(request: Request, limits: Limits) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body:
        raise too_large(f"a body of {length[:20]} bytes", f"at most {limits.body}")

    async def collect() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.body:
                raise too_large(f"a body over {limits.body} bytes", f"at most {limits.body}")
        return bytes(body)

    try:
        return await asyncio.wait_for(collect(), limits.read_s)
    except asyncio.TimeoutError:
        raise malformed(f"no whole body in {limits.read_s:g} s", "the body at once") from None


def _observation(
    payload: dict[str, Value], request: Request, robot: str, received_ns: int, limits: Limits
) -> Observation:
    for name in ("image", "instruction"):
        if name not in payload:
            raise missing(f"'{name}'", payload, [name])
    return Observation(
        robot=robot,
        image=rgb(payload["image"], "image", limits),
        instruction=instruction(payload["instruction"], "instruction"),
        received_ns=received_ns,
        unnorm_key=text(payload.get("unnorm_key"), "unnorm_key"),
        observation_id=request.headers.get(f"{PREFIX}Observation-Id"),
        deadline_ms=_milliseconds(request, "Deadline-Ms"),
        age_ms=_milliseconds(request, "Age-Ms"),
    )


def _milliseconds(request: Request, name: str) -> float | None:
    value = request.headers.get(f"{PREFIX}{name}")
    try:
        return None if value is None else float(value)
    except ValueError:
        raise malformed(f"{PREFIX}{name} that is no number", "milliseconds") from None


async def _while_connected(request: Request, act: Coroutine[Any, Any, Reply]) -> Reply:
    """The reply, or ClientDisconnect as soon as nobody waits for it: then it is cancelled."""
    reply = asyncio.ensure_future(act)
    gone = asyncio.ensure_future(request.receive())  # the body is read: the next message is the disconnect
    try:
        await asyncio.wait({reply, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            raise ClientDisconnect
        return reply.result()
    finally:
        gone.cancel()
        if not reply.done():
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)


def _headers(reply: Reply) -> dict[str, str]:
    values: dict[str, str | int | float] = {
        "Robot": reply.robot,
        "Request-Id": reply.request_id,
        "Age-Ms": f"{reply.age_ms:.3f}",
        "Valid-For-Ms": f"{reply.valid_for_ms:.3f}",
        "Queue-Ms": f"{reply.queue_ms:.3f}",
        "Infer-Ms": f"{reply.infer_ms:.3f}",
        "Server-Recv-Ns": reply.received_ns,
        "Artifact": reply.artifact,
        "Unnorm-Key": reply.unnorm_key,
        "Tokens": ",".join(map(str, reply.tokens)),
    }
    if reply.observation_id is not None:
        values["Observation-Id"] = reply.observation_id
    latin = {name: str(value).encode("latin-1", "replace").decode("latin-1") for name, value in values.items()}
    return {f"{PREFIX}{name}": value for name, value in latin.items()} | {"Cache-Control": "no-store"}


def _exact(error: RefusedError, *, readable: bool) -> Response:
    """As FastAPI answers a body that it cannot read, and `deploy.py` everything else."""
    if error.code is Code.TOO_LARGE:
        return response(error)
    if readable:
        return Response(b'"error"', 200, {f"{PREFIX}Request-Id": error.request_id}, JSON)
    return Response(json.dumps({"detail": error.detail}), UNREADABLE, media_type=JSON)
