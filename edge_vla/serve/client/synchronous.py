"""A robot without asyncio: `AsyncRobot` on a loop in a thread of its own, so that every wait has an end."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.client import wire
from edge_vla.serve.client.asynchronous import CONNECT_S, AsyncRobot

T = TypeVar("T")


class Robot:
    """`act` as a robot's loop calls it, from any thread. Arguments and errors as `AsyncRobot`'s."""

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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"robot {robot}", daemon=True)
        self._thread.start()

        async def make() -> AsyncRobot:
            return AsyncRobot(
                url,
                robot,
                token=token,
                ssl_context=ssl_context,
                resize=resize,
                watchdog_ms=watchdog_ms,
                on_hold=on_hold,
            )

        try:
            self._robot = self._run(make())
        except BaseException:
            self._end()
            raise

    @property
    def robot(self) -> str:
        return self._robot.robot

    def connect(self, timeout_s: float = CONNECT_S) -> wire.Hello:
        """Open the connection now; what the server says of itself."""
        return self._run(self._robot.connect(timeout_s))

    def act(
        self,
        image: NDArray[np.uint8] | bytes,
        instruction: str,
        *,
        deadline_ms: float = 150.0,
        unnorm_key: str | None = None,
        age_ms: float = 0.0,
    ) -> wire.Action:
        """The action for this image and no other, within `deadline_ms`, or a `ClientError`."""
        return self._run(
            self._robot.act(image, instruction, deadline_ms=deadline_ms, unnorm_key=unnorm_key, age_ms=age_ms)
        )

    def reset(self, timeout_s: float = CONNECT_S) -> None:
        """An episode begins: the server forgets what it drafted from."""
        self._run(self._robot.reset(timeout_s))

    def close(self) -> None:
        """Give the connection back and stop the watchdog. May be called twice."""
        if not self._loop.is_closed():
            self._run(self._robot.close())
            self._end()

    def __enter__(self) -> Robot:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        waiting = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return waiting.result()
        except KeyboardInterrupt:
            waiting.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
