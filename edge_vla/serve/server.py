"""The application: health, metadata, metrics and every front end on one port. Knows routes, and no policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edge_vla.serve import native, openpi, rest, vla_eval
from edge_vla.serve.counted import Counted
from edge_vla.serve.guard import Access, Guard
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError
from edge_vla.serve.middle import Middle
from edge_vla.serve.page import routes as live_page
from edge_vla.serve.problem import response

RATES_HZ: Final = (5, 10)  # that /metadata and the start say how many robots are sustained at


@dataclass(frozen=True)
class Protocol:
    """A front end: what it is called, the scheme and path of its address, and its routes."""

    name: str
    scheme: str
    path: str
    routes: Callable[[Counted, Limits], list[BaseRoute]]


def protocols(*, exact: bool) -> list[Protocol]:
    """Every protocol on the port. `exact`: REST answers errors as OpenVLA's deploy.py does."""
    return [
        Protocol("native", "ws", native.PATH, native.routes),
        Protocol("rest", "http", "/act", lambda service, limits: rest.routes(service, limits, exact=exact)),
        Protocol("openpi", "ws", "/", openpi.routes),
        Protocol("vla-eval", "ws", vla_eval.PATH, vla_eval.routes),
    ]


def application(host: Middle, access: Access, *, exact: bool = False, page: bool = True, redact: bool = False) -> Guard:
    """All routes behind the guard. Errors of the routing itself are problem JSON as well.

    `redact`: the page shows neither instructions nor pictures.
    """
    found = [*operations(host), *(live_page(host, redact=redact) if page else ())]
    for front in protocols(exact=exact):
        found += front.routes(Counted(host, front.name), host.options.limits)
    handlers = {404: _not_found, 405: _not_found, Exception: _failed}
    app = Starlette(routes=found, exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.refused = Counted(host, "http").refused
    return Guard(app, access, Counted(host, "http"))


def operations(host: Middle) -> list[BaseRoute]:
    """What supervisors, dashboards and people ask."""

    async def healthz(_: Request) -> Response:
        return Response("OK\n", media_type="text/plain")

    async def readyz(_: Request) -> Response:
        body = {"status": "stalled" if host.stalled else host.state.value, **dataclasses.asdict(host.progress)}
        return JSONResponse(body, 200 if host.ready else 503, {"Cache-Control": "no-store"})

    async def metadata(_: Request) -> Response:
        try:
            found = dataclasses.asdict(host.metadata)
        except RefusedError as error:
            return response(host.refused(error, "http"))
        robots = {str(rate): host.sustained(rate) for rate in RATES_HZ}
        figures = {"action_ms": 1e3 * host.action_s, "robots_at_hz": robots, "valid_ms": host.valid_ms}
        return JSONResponse({**found, **figures, "limits": dataclasses.asdict(host.options.limits)})

    async def metrics(_: Request) -> Response:
        return Response(host.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metadata", metadata),
        Route("/metrics", metrics),
    ]


async def _not_found(request: Request, error: HTTPException) -> Response:
    known = "/act, /metadata, /metrics, /healthz, /readyz"
    refusal = RefusedError(Code.NOT_FOUND, f"{request.method} is not answered here: there are {known}")
    answer = response(request.app.state.refused(refusal))
    answer.status_code = error.status_code
    return answer


async def _failed(request: Request, _: Exception) -> Response:
    return response(request.app.state.refused(RefusedError(Code.ENGINE, "the server failed; its log says why")))
