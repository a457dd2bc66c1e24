"""The live page at `/`, its data at `/live`, and its pictures at `/live/picture?robot=NAME`.

The page asks no other server for anything and holds no data itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edge_vla.serve.middle import Middle
from edge_vla.serve.pictures import Pictures
from edge_vla.serve.record import marked

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
FRESH: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def routes(host: Middle, *, redact: bool = False) -> list[BaseRoute]:
    """`redact`: marks in the place of instructions, and no picture is kept."""
    text = PAGE.read_text(encoding="utf-8")
    pictures = Pictures(host.options.limits.robots)
    if not redact:
        host.watchers.append(pictures)

    async def page(_: Request) -> Response:
        return Response(text, media_type="text/html", headers=HEADERS)

    async def live(_: Request) -> Response:
        robots = []
        for robot in host.activity.view():
            words = marked(robot.instruction) if redact and robot.instruction else robot.instruction
            shown = dataclasses.asdict(dataclasses.replace(robot, instruction=words))
            robots.append({**shown, "picture": pictures.number(robot.robot)})
        state = {"status": host.state.value, "stage": host.progress.stage, "fraction": host.progress.fraction}
        queue = {"waiting": host.depth, "action_ms": 1e3 * host.action_s}
        return JSONResponse({**state, **queue, "robots": robots}, headers=FRESH)

    async def picture(request: Request) -> Response:
        found = await pictures.jpeg(request.query_params.get("robot", ""))
        if found is None:  # it left since `/live` named it: no error, which a browser's console would show
            return Response(status_code=204, headers=FRESH)
        return Response(found, media_type="image/jpeg", headers=FRESH)

    return [Route("/", page), Route("/live", live), Route("/live/picture", picture)]
