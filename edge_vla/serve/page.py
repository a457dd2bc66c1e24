"""The live page at `/` and its data at `/live`. The page asks no other server for anything and holds no data itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edge_vla.serve.middle import Middle

PAGE: Final = Path(__file__).with_name("page.html")
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def routes(host: Middle) -> list[BaseRoute]:
    text = PAGE.read_text(encoding="utf-8")

    async def page(_: Request) -> Response:
        return Response(text, media_type="text/html", headers=HEADERS)

    async def live(_: Request) -> Response:
        robots = [dataclasses.asdict(robot) for robot in host.activity.view()]
        state = {"status": host.state.value, "stage": host.progress.stage, "fraction": host.progress.fraction}
        queue = {"waiting": host.depth, "action_ms": 1e3 * host.action_s}
        return JSONResponse({**state, **queue, "robots": robots}, headers={"Cache-Control": "no-store"})

    return [Route("/", page), Route("/live", live)]
