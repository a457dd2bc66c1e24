"""A refusal as HTTP and text frames carry it: problem JSON (RFC 9457). No traceback, path or token gets in here."""

from __future__ import annotations

import json
import math
from typing import Final

from starlette.responses import Response

from edge_vla.serve.messages import Code, RefusedError, Service

MEDIA_TYPE: Final = "application/problem+json"
TITLES: Final = {
    Code.MALFORMED: "The message cannot be read",
    Code.TOO_LARGE: "The message is over a limit",
    Code.IMAGE_SHAPE: "The image has the wrong form",
    Code.FROZEN: "The camera seems dead",
    Code.INSTRUCTION: "The instruction cannot be used",
    Code.UNNORM_KEY: "The policy has no such statistics",
    Code.UNAUTHORISED: "A token is needed",
    Code.NOT_FOUND: "There is nothing here",
    Code.SUPERSEDED: "A newer observation came",
    Code.DEADLINE: "The action would come too late",
    Code.OVERLOAD: "The server is at its capacity",
    Code.RATE: "The token is over its limit",
    Code.NOT_READY: "The server is not ready",
    Code.SHUTTING_DOWN: "The server is shutting down",
    Code.NUMERIC: "The policy gave no finite action",
    Code.ENGINE: "The engine failed",
}


def problem(error: RefusedError) -> bytes:
    """One line of JSON: type, title, status, code, detail, request_id and, where waiting helps, retry_after_s."""
    fields: dict[str, str | int | float] = {
        "type": "about:blank",
        "title": TITLES[error.code],
        "status": error.status,
        "code": error.code.value,
        "detail": error.detail,
        "request_id": error.request_id,
    }
    if error.retry_after_s is not None:
        fields["retry_after_s"] = error.retry_after_s
    return json.dumps(fields).encode("ascii")


def response(error: RefusedError) -> Response:
    headers = {"X-EdgeVLA-Request-Id": error.request_id, "Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))  # whole seconds, by RFC 9110
    return Response(problem(error), error.status, headers, MEDIA_TYPE)


def counted(service: Service, error: RefusedError) -> RefusedError:
    """The server's own refusals have a request id already; a front end's get one, and are counted, here."""
    return error if error.request_id else service.refused(error)
