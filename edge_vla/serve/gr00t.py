"""Isaac GR00T's ZeroMQ protocol, for its clients unmodified: N1.5 (flat fields) and N1.6, N1.7 (nested, batched).

A REQ socket that gets no reply hangs for ever, so every message is answered: refusals as a map with `error`, which the
clients raise, and on shutdown what is queued too. `kill` is always refused. Actions come under the seven names that
GR00T's own OpenX and LIBERO configurations use, as (B, 1, 1) float32, in N1.5 as (1, 1) float64.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import zmq
import zmq.asyncio

from edge_vla.serve.codec import gr00t as codec
from edge_vla.serve.codec.values import Value
from edge_vla.serve.fields import fields, off_loop, unique
from edge_vla.serve.gr00t_fields import AXES, CAMERAS, LANGUAGE, Asked, read
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError, Reply, Service
from edge_vla.serve.problem import counted
from edge_vla.serve.tokens import CALLER, Callers

log = logging.getLogger(__name__)
ANSWERED: Final = 4  # times the body's limit: up to here a message is read and refused, above its sender is cut off
DRAIN_S: Final = 2.0  # for what is under way at shutdown
LINGER_MS: Final = 500  # for the last replies to leave
IDLE_S: Final = 60.0  # ZeroMQ does not say who left: a robot that is silent for so long has


@dataclass
class _Peer:
    """A client's socket: under which names its robots are known, and which version it speaks."""

    name: str
    version: codec.Version = "n1.6"
    heard: float = 0.0
    robots: set[str] = field(default_factory=set)


async def serve_zmq(
    service: Service,
    address: str,
    limits: Limits,
    callers: Callers | None = None,
    *,
    on_bound: Callable[[str], None] = lambda _: None,
) -> None:
    """Until cancelled. `address` as `tcp://127.0.0.1:5555`; `on_bound` gets it with the port that was taken."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.MAXMSGSIZE, ANSWERED * limits.body)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.RCVHWM, 2)  # messages of one client that wait
        socket.bind(address)
        on_bound(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        await _Server(service, socket, limits, callers or Callers()).run()


class _Server:
    def __init__(self, service: Service, socket: zmq.asyncio.Socket, limits: Limits, callers: Callers) -> None:
        self.service, self.socket, self.limits, self.callers = service, socket, limits, callers
        self.peers: dict[bytes, _Peer] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        sweeping = asyncio.create_task(self._sweep())
        try:
            while True:
                while len(self.tasks) >= self.limits.robots:
                    await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
                frames = await self.socket.recv_multipart()
                task = asyncio.create_task(self._handle(frames))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        finally:
            sweeping.cancel()
            await self._shut_down()

    async def _handle(self, frames: Sequence[bytes]) -> None:
        """One request, one reply, whatever happens."""
        envelope, body, received = frames[:-1], frames[-1], time.monotonic_ns()
        try:
            peer = self._peer(frames[0])
            message = fields(await off_loop(len(body), lambda: codec.decode(body, self.limits)))
            self._authorise(message)
            reply = codec.encode(await self._answer(message, peer, received), peer.version)
        except RefusedError as error:
            reply = self._refusal(error)
        except asyncio.CancelledError:
            reply = self._refusal(RefusedError(Code.SHUTTING_DOWN, "the server is shutting down"))
        except Exception:
            log.exception("a fault while answering a GR00T client")
            reply = self._refusal(RefusedError(Code.ENGINE, "the server failed on this message; its log says why"))
        await self.socket.send_multipart([*envelope, reply])

    def _peer(self, identity: bytes) -> _Peer:
        if identity not in self.peers and len(self.peers) >= self.limits.connections:
            detail = f"{len(self.peers)} clients are connected: ask again later"
            raise RefusedError(Code.OVERLOAD, detail, retry_after_s=IDLE_S)
        peer = self.peers.setdefault(identity, _Peer(unique("gr00t")))
        peer.heard = time.monotonic()
        return peer

    def _authorise(self, message: dict[str, Value]) -> None:
        given = message.get("api_token")
        caller = self.callers.find(given if isinstance(given, str) else "")
        if caller is None:
            raise RefusedError(Code.UNAUTHORISED, "api_token is missing or wrong: give the client this server's")
        CALLER.set(caller)  # for this message's task, and those it starts

    async def _answer(self, message: dict[str, Value], peer: _Peer, received_ns: int) -> object:
        endpoint = message.get("endpoint", "get_action")
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "get_action":
            return await self._act(read(fields(message.get("data")), self.limits), peer, received_ns)
        if endpoint == "reset":
            for robot in peer.robots:
                self.service.reset(robot)
            return {}
        if endpoint == "get_modality_config":
            return self._modalities()
        if endpoint == "kill":
            raise RefusedError(Code.UNAUTHORISED, "kill is refused: stop the server on the machine it runs on")
        known = "ping, get_action, reset and get_modality_config"
        raise RefusedError(Code.NOT_FOUND, f"got endpoint {str(endpoint)[:20]!a}, expected one of {known}")

    async def _act(self, asked: Asked, peer: _Peer, received_ns: int) -> object:
        """Each row of a batch is a robot of its own."""
        peer.version = asked.version
        observations = [asked.observation(row, f"{peer.name}/{row}", received_ns) for row in range(len(asked.images))]
        peer.robots |= {observation.robot for observation in observations}
        replies = await asyncio.gather(*(self.service.act(observation) for observation in observations))
        actions = np.stack([reply.action for reply in replies])[:, None]  # (B, horizon 1, dims)
        names = self._names(actions.shape[-1])
        if asked.version == "n1.6":
            split = np.split(actions.astype(np.float32), len(names), axis=-1)
            return [dict(zip(names, split, strict=True)), {"edge_vla": [_freshness(reply) for reply in replies]}]
        flat = actions if asked.batched else actions[0]
        return {f"action.{name}": part for name, part in zip(names, np.split(flat, len(names), axis=-1), strict=True)}

    def _names(self, dims: int) -> tuple[str, ...]:
        return AXES if dims == len(AXES) else tuple(f"action_{index}" for index in range(dims))

    def _modalities(self) -> object:
        names = {"video": CAMERAS[:1], "language": (LANGUAGE,), "action": self._names(self.service.metadata.dims)}
        return {kind: codec.ModalityConfig([0], list(keys)) for kind, keys in names.items()}

    def _refusal(self, error: RefusedError) -> bytes:
        error = counted(self.service, error)
        said = {"error": f"{error.code.value}: {error.detail}", "code": error.code.value}
        return codec.encode({**said, "request_id": error.request_id, "retry_after_s": error.retry_after_s})

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S / 4)
            silent = time.monotonic() - IDLE_S
            for identity in [identity for identity, peer in self.peers.items() if peer.heard < silent]:
                self._leave(self.peers.pop(identity))

    def _leave(self, peer: _Peer) -> None:
        for robot in peer.robots:
            self.service.leave(robot)

    async def _shut_down(self) -> None:
        """What is under way has `DRAIN_S`, what was received is refused: nobody waits for ever."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=DRAIN_S)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        while await self.socket.poll(0):
            frames = await self.socket.recv_multipart()
            refusal = self._refusal(RefusedError(Code.SHUTTING_DOWN, "the server is shutting down"))
            await self.socket.send_multipart([*frames[:-1], refusal])
        for peer in self.peers.values():
            self._leave(peer)


def _freshness(reply: Reply) -> dict[str, object]:
    return {
        "observation_id": reply.observation_id,
        "request_id": reply.request_id,
        "age_ms": reply.age_ms,
        "valid_for_ms": reply.valid_for_ms,
        "queue_ms": reply.queue_ms,
        "infer_ms": reply.infer_ms,
        "server_recv_ns": reply.received_ns,
        "artifact": reply.artifact,
        "unnorm_key": reply.unnorm_key,
        "tokens": list(reply.tokens),
    }
