"""In front of every route: who may ask, from which page, how many at a time, how slowly; and how sockets are closed.

ASGI and uvicorn only; knows neither observations nor a protocol.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_vla.serve.messages import Code, RefusedError, Service
from edge_vla.serve.problem import counted, response
from edge_vla.serve.tokens import CALLER, Caller, Callers, Token

OPEN: Final = ("/", "/healthz", "/readyz")  # a supervisor has no token, and the page asks for it
GOING_AWAY: Final = 1001
LOCAL: Final = ("localhost", "127.0.0.1", "::1")
STRANGER: Final = Caller(Token(""))  # on a path that is open to all, where no observation is asked for


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """`callers`: whose tokens are known. `local`: names of this machine are the only ones a request may call it by.

    The last keeps a page in a browser from reaching a loopback server by a name of its own that resolves to 127.0.0.1.
    """

    callers: Callers
    local: bool
    origins: Collection[str] = ()


class Guard:
    """ASGI middleware. `drain` closes every WebSocket with 1001 in the name of the application."""

    def __init__(self, app: ASGIApp, access: Access, service: Service) -> None:
        self.app, self.access, self.service = app, access, service
        self._sockets: dict[_Closable, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["type"] == "http" else ""
        try:
            caller = self._caller(Headers(scope=scope), path)
            if scope["type"] == "websocket":
                caller.connect()
        except RefusedError as error:
            await _deny(counted(self.service, error), scope, receive, send)
            return
        CALLER.set(caller)  # for the tasks of this request or connection
        if scope["type"] == "http":
            await self.app(scope, receive, send)
            return
        socket = _Closable(send)
        self._sockets[socket] = None
        try:
            await self.app(scope, receive, socket.send)
        finally:
            del self._sockets[socket]
            caller.disconnect()

    async def drain(self) -> None:
        """Close every WebSocket that is open."""
        await asyncio.gather(*(socket.close() for socket in list(self._sockets)), return_exceptions=True)

    def _caller(self, headers: Headers, path: str) -> Caller:
        """Who asks; RefusedError for a stranger, and for a page or a name that is not ours."""
        host = headers.get("host", "")
        if self.access.local and _hostname(host) not in LOCAL:
            raise RefusedError(Code.UNAUTHORISED, "this server is called by a name that is not this machine's")
        origin = headers.get("origin")
        if origin is not None and origin not in self.access.origins and urlsplit(origin).netloc != host:
            raise RefusedError(Code.UNAUTHORISED, "a page of another origin asks: allow it with --origin")
        caller = STRANGER if path in OPEN else self.access.callers.find(_token(headers.get("authorization", "")))
        if caller is not None:
            return caller
        raise RefusedError(Code.UNAUTHORISED, "a token is needed: Authorization: Bearer TOKEN")


class _Closable:
    """A WebSocket's `send` that falls silent once the server has closed it."""

    def __init__(self, send: Send) -> None:
        self._send, self._accepted, self._closed = send, False, False

    async def send(self, message: Message) -> None:
        if self._closed:
            return
        self._accepted |= message["type"] == "websocket.accept"
        self._closed |= message["type"] == "websocket.close"
        await self._send(message)

    async def close(self) -> None:
        if self._accepted and not self._closed:
            self._closed = True
            await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": "the server is shutting down"})


class SlowProtocol(H11Protocol):
    """uvicorn's HTTP with a time for each request's header and body, and a cap on connections.

    `read_s` and `most` are set on a subclass: see `protocol`.
    """

    read_s: float
    most: int
    _reading: asyncio.TimerHandle | None = None
    _upgraded = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        if before is h11.IDLE and self._reading is None:
            self._expect()
        super().data_received(data)
        after = self.conn.their_state
        if self._upgraded:
            self._stop()
        elif after is h11.SEND_BODY and before is not h11.SEND_BODY:
            self._expect()
        elif after not in (h11.IDLE, h11.SEND_BODY):
            self._stop()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def _expect(self) -> None:
        self._stop()
        self._reading = self.loop.call_later(self.read_s, self.transport.abort)

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


def protocol(read_seconds: float, connections: int) -> type[SlowProtocol]:
    class Bounded(SlowProtocol):
        read_s, most = read_seconds, connections

    return Bounded


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _token(header: str) -> str:
    """What an Authorization header gives as a token; "" for another scheme."""
    scheme, _, given = header.partition(" ")
    return given.strip() if scheme.lower() in ("bearer", "api-key") else ""


async def _deny(error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = response(error)
    if scope["type"] == "http":
        await answer(scope, receive, send)
    else:
        await WebSocket(scope, receive, send).send_denial_response(answer)
