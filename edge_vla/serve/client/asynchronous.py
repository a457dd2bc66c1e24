"""A robot on asyncio. One connection; a timeout gives it up, and the next `act` opens another."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from edge_vla.serve.client import wire
from edge_vla.serve.client.errors import ClientError, DeadlineError, DisconnectedError, ProtocolError
from edge_vla.serve.client.watchdog import Watchdog

PATH: Final = "/v1/robot"
MOST: Final = 2**20  # bytes of a message from the server
CONNECT_S: Final = 5.0
RETURN, RETURN_MS = 0.1, 20.0  # of a deadline, at most: for the way back, so that a refusal still comes in time
# From 15 on websockets would read proxies from the environment; a robot's server is never behind one by accident.
NO_PROXY: Final[dict[str, None]] = {"proxy": None} if "proxy" in inspect.signature(connect).parameters else {}


class _Connection:
    """An open connection and the observations that wait for their answer on it."""

    def __init__(self, socket: ClientConnection, hello: wire.Hello) -> None:
        self.socket, self.hello = socket, hello
        self.waiting: dict[int, asyncio.Future[wire.Message]] = {}
        self.reader = asyncio.create_task(self._read())
        self.broken: ClientError | None = None

    async def _read(self) -> None:
        try:
            async for frame in self.socket:
                self._dispatch(wire.read(frame))
        except (WebSocketException, OSError, ProtocolError) as error:
            self.give_up(
                error if isinstance(error, ProtocolError) else DisconnectedError(f"the connection broke: {error}")
            )
        else:
            self.give_up(DisconnectedError(f"the server closed the connection: {self.socket.close_reason or 'done'}"))

    def _dispatch(self, message: wire.Message) -> None:
        """To who asked. An answer that nobody waits for is dropped; an error without a name concerns everybody."""
        number = message.get("id")
        if number is None and message["type"] == "error":
            for future in self.waiting.values():
                _set(future, message)
        elif isinstance(number, int) and number in self.waiting:
            _set(self.waiting[number], message)

    def give_up(self, error: ClientError) -> None:
        """No answer of this connection counts from now on."""
        if self.broken is None:
            self.broken = error
            self.socket.transport.abort()
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(error)


class AsyncRobot:
    """`act` as a robot's loop calls it. All calls from one event loop.

    `resize` makes images that are larger than the policy's as small before they are sent, bit for bit as it would.

    `on_hold(seconds)` is called in a thread when no fresh action came for `watchdog_ms`, counted from the first.
    """

    def __init__(
        self,
        url: str,
        robot: str,
        *,
        token: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resize: bool = False,
        watchdog_ms: float | None = None,
        on_hold: Callable[[float], None] | None = None,
    ) -> None:
        if (watchdog_ms is None) != (on_hold is None):
            raise ValueError("watchdog_ms and on_hold go together")
        self.robot, self._resize = robot, resize
        self._address = f"{url.rstrip('/')}{PATH}?robot={quote(robot, safe='')}"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._tls: ssl.SSLContext | bool | None = ssl_context or (True if url.startswith("wss:") else None)
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._watchdog = None if watchdog_ms is None or on_hold is None else Watchdog(watchdog_ms / 1e3, on_hold)

    async def connect(self, timeout_s: float = CONNECT_S) -> wire.Hello:
        """Open the connection now; what the server says of itself. `act` does so by itself where there is none."""
        try:
            return (await asyncio.wait_for(self._open(), timeout_s)).hello
        except asyncio.TimeoutError:
            raise DeadlineError(f"no connection within {timeout_s:g} s") from None

    async def act(
        self,
        image: NDArray[np.uint8] | bytes,
        instruction: str,
        *,
        deadline_ms: float = 150.0,
        unnorm_key: str | None = None,
        age_ms: float = 0.0,
    ) -> wire.Action:
        """The action for this image and no other, within `deadline_ms`, or a `ClientError`.

        `image` is (H, W, 3) uint8 RGB or the bytes of a JPEG or PNG file, `age_ms` how old it is by now.
        """
        started = time.monotonic()
        try:
            action = await asyncio.wait_for(
                self._ask(image, instruction, started, deadline_ms, unnorm_key, age_ms), deadline_ms / 1e3
            )
        except asyncio.TimeoutError:
            error = DeadlineError(f"no action within {deadline_ms:g} ms: the connection is given up")
            self._poison(error)
            raise error from None
        except asyncio.CancelledError:
            self._poison(DisconnectedError("act was cancelled"))
            raise
        if self._watchdog is not None:
            self._watchdog.feed()
        return action

    async def reset(self, timeout_s: float = CONNECT_S) -> None:
        """An episode begins: the server forgets what it drafted from."""
        try:
            await asyncio.wait_for(self._exchange({"type": "reset"}), timeout_s)
        except asyncio.TimeoutError:
            error = DeadlineError(f"no answer within {timeout_s:g} s")
            self._poison(error)
            raise error from None

    async def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(connection.socket.close(), 1.0)
            connection.give_up(DisconnectedError("closed"))
            connection.reader.cancel()
            await asyncio.gather(connection.reader, return_exceptions=True)

    async def __aenter__(self) -> AsyncRobot:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self,
        image: NDArray[np.uint8] | bytes,
        instruction: str,
        started: float,
        deadline_ms: float,
        unnorm_key: str | None,
        age_ms: float,
    ) -> wire.Action:
        if not isinstance(image, bytes) and (image.dtype != np.uint8 or image.ndim != 3):
            raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        connection = await self._open()
        if self._resize and not isinstance(image, bytes):
            image = wire.smaller(image, connection.hello)
        now = time.monotonic()
        passed = 1e3 * (now - started)
        asked = wire.Asked(next(self._numbers), now, age_ms + passed)
        left = max(0.1, deadline_ms - passed - min(RETURN_MS, RETURN * deadline_ms))
        frame = wire.observation(image, instruction, asked, deadline_ms=left, unnorm_key=unnorm_key)
        message = await self._answer(connection, asked.number, frame)
        try:
            return wire.action(message, asked, self.robot)
        except ProtocolError as error:
            connection.give_up(error)
            raise

    async def _exchange(self, message: wire.Message) -> None:
        connection, number = await self._open(), next(self._numbers)
        await self._answer(connection, number, wire.pack(message | {"id": number}))

    async def _answer(self, connection: _Connection, number: int, frame: bytes) -> wire.Message:
        """Send, and wait for the message of this number. Raises the server's refusal."""
        future: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        connection.waiting[number] = future
        try:
            await connection.socket.send(frame)
            message = await future
        except (WebSocketException, OSError) as error:
            raise DisconnectedError(f"the connection broke: {error}") from error
        finally:
            del connection.waiting[number]
            if future.done() and not future.cancelled():
                future.exception()  # looked at, whatever it is
        if message["type"] == "error":
            raise wire.refusal(message)
        return message

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._connection is not None and self._connection.broken is None:
                return self._connection
            try:
                socket = await connect(
                    self._address,
                    additional_headers=self._headers,
                    ssl=self._tls,
                    compression=None,
                    max_size=MOST,
                    open_timeout=None,
                    close_timeout=1.0,
                    **NO_PROXY,  # type: ignore[arg-type]
                )
            except InvalidStatus as error:
                raise wire.denial(error.response.status_code, bytes(error.response.body or b"")) from None
            except (OSError, InvalidHandshake) as error:
                raise DisconnectedError(f"no connection: {error}") from error
            try:
                hello = wire.hello(wire.read(await socket.recv()))
            except BaseException as error:
                socket.transport.abort()
                if isinstance(error, WebSocketException):
                    raise DisconnectedError(f"the connection broke: {error}") from error
                raise
            self._connection = _Connection(socket, hello)
            return self._connection

    def _poison(self, error: ClientError) -> None:
        if self._connection is not None:
            self._connection.give_up(error)


def _set(future: asyncio.Future[wire.Message], message: wire.Message) -> None:
    if not future.done():
        future.set_result(message)
