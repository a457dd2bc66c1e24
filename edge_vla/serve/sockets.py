"""One WebSocket connection under a protocol that answers messages with messages. Knows no protocol.

Messages are decoded in order and answered side by side, so that a disconnect cancels at once and, in protocols that do
not wait, a newer observation can take an older one's place. A refusal is the protocol's own; the connection lives on.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from edge_vla.serve.codec.values import Value, malformed
from edge_vla.serve.fields import off_loop
from edge_vla.serve.messages import Code, RefusedError, Service
from edge_vla.serve.problem import counted, response

PIPELINED: Final = 4  # messages of one connection under way at once; the next is not read before one is answered
INTERNAL_ERROR: Final = 1011

Frame = str | bytes


class Dialogue(Protocol):
    """A protocol's part: what a frame means, what is said to it, and how it says no."""

    def decode(self, frame: bytes) -> Value: ...

    async def answer(self, message: Value, received_ns: int) -> Frame | None: ...

    def refusal(self, error: RefusedError, message: Value) -> Frame: ...


async def accept(socket: WebSocket, service: Service) -> bool:
    """Whether the connection is open now. A server that is not ready answers 503, before the handshake."""
    if service.ready:
        await socket.accept()
        return True
    error = RefusedError(Code.NOT_READY, "the policy is being loaded: ask /readyz how far it is", retry_after_s=1.0)
    await socket.send_denial_response(response(counted(service, error)))
    return False


async def converse(socket: WebSocket, service: Service, robot: str, dialogue: Dialogue) -> None:
    """Until the client leaves; then what it has queued is cancelled and `robot` forgotten.

    An exception that is no refusal is a fault of ours: the client gets E_ENGINE and 1011, the log the exception.
    """
    turns: set[asyncio.Task[None]] = set()
    free, sending = asyncio.Semaphore(PIPELINED), asyncio.Lock()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def turn() -> None:
        """Whoever hears a message answers it, and leaves listening to the next: no message waits for a task."""
        async with free:
            frame = await _receive(socket)
            begin()
            await _handle(socket, service, dialogue, frame, sending)

    def begin() -> None:
        task = asyncio.create_task(turn())
        turns.add(task)
        task.add_done_callback(finish)

    def finish(task: asyncio.Task[None]) -> None:
        turns.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not ended.done():
            ended.set_exception(error)

    begin()
    try:
        await ended
    except WebSocketDisconnect:
        pass
    except Exception:
        await _fail(socket, service, dialogue)
        raise
    finally:
        left = list(turns)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        service.leave(robot)


async def _receive(socket: WebSocket) -> Frame:
    event = await socket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", 1005))
    data = event.get("bytes")
    return data if isinstance(data, bytes) else str(event.get("text"))


async def _handle(socket: WebSocket, service: Service, dialogue: Dialogue, frame: Frame, sending: asyncio.Lock) -> None:
    received, message = time.monotonic_ns(), None
    reply: Frame | None
    try:
        if isinstance(frame, str):
            raise malformed("a text frame", "a binary one")
        message = await off_loop(len(frame), lambda: dialogue.decode(frame))
        reply = await dialogue.answer(message, received)
    except RefusedError as error:
        reply = dialogue.refusal(counted(service, error), message)
    if reply is not None:
        async with sending:
            await send(socket, reply)


async def send(socket: WebSocket, frame: Frame) -> None:
    await (socket.send_text(frame) if isinstance(frame, str) else socket.send_bytes(frame))


async def _fail(socket: WebSocket, service: Service, dialogue: Dialogue) -> None:
    error = counted(service, RefusedError(Code.ENGINE, "the server failed on this message; its log says why"))
    try:
        await send(socket, dialogue.refusal(error, None))
        await socket.close(INTERNAL_ERROR)
    except (WebSocketDisconnect, RuntimeError):  # the client was faster
        pass
