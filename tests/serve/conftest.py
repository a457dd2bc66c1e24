"""The real demo policy behind a small Service, and its front ends on a real socket: what a client's test needs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.routing import BaseRoute

import edge_vla
from edge_vla.demo import BASE, statistics_key
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start
from edge_vla.errors import UsageError
from edge_vla.runtime import Policy
from edge_vla.serve import gr00t, openpi, rest, vla_eval
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply
from edge_vla.serve.tokens import Callers, Token

INSTRUCTION = "pick up the red block"
KEY = statistics_key(1)


@dataclass
class DemoService:
    """`policy.act` on a thread. Notes who asked, who left and what was refused."""

    policy: Policy
    metadata: Metadata
    ready: bool = True
    hold: threading.Event | None = None  # set: actions wait for it
    asked: list[Observation] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    refusals: list[RefusedError] = field(default_factory=list)
    cancelled: int = 0

    async def act(self, observation: Observation) -> Reply:
        self.asked.append(observation)
        request_id, began = f"request-{len(self.asked)}", time.monotonic()
        try:
            if self.hold is not None:
                while not self.hold.is_set():
                    await asyncio.sleep(0.005)
            key = observation.unnorm_key
            action = await asyncio.to_thread(self.policy.act, observation.image, observation.instruction, key)
        except UsageError as error:
            raise RefusedError(Code.UNNORM_KEY, str(error), request_id=request_id) from error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        infer_ms = (time.monotonic() - began) * 1e3
        return Reply(
            action=action.values,
            tokens=action.tokens,
            margins=action.margins,
            unnorm_key=action.unnorm_key,
            robot=observation.robot,
            observation_id=observation.observation_id,
            request_id=request_id,
            age_ms=(observation.age_ms or 0) + infer_ms,
            valid_for_ms=200.0,
            queue_ms=0.0,
            infer_ms=infer_ms,
            artifact="0123456789ab",
            received_ns=observation.received_ns,
        )

    def reset(self, robot: str) -> None:
        self.resets.append(robot)

    def leave(self, robot: str) -> None:
        self.left.append(robot)

    def refused(self, error: RefusedError) -> RefusedError:
        error.request_id = f"refusal-{len(self.refusals)}"
        self.refusals.append(error)
        return error


@dataclass
class Running:
    """Where a server listens, and the service behind it."""

    port: int
    service: DemoService

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def policy() -> Policy:
    return edge_vla.load(BASE, dtype="fp32")


@pytest.fixture(scope="session")
def image() -> NDArray[np.uint8]:
    state, _ = start(EVALUATION_SEEDS[0], "pick")
    return np.asarray(render(state, world(1)))


def demo_service(policy: Policy) -> DemoService:
    metadata = Metadata(
        artifact="0123456789ab",
        model="openvla",
        unnorm_keys=[KEY],
        default_unnorm_key=KEY,
        dims=policy.dims(),
        image_size=112,
        preprocess="none",
        max_image_pixels=Limits().image_pixels,
        version="0",
    )
    return DemoService(policy, metadata)


@pytest.fixture
def service(policy: Policy) -> DemoService:
    return demo_service(policy)


@contextmanager
def serving(routes: list[BaseRoute], service: DemoService) -> Iterator[Running]:
    """uvicorn on a free port of 127.0.0.1, on a thread, as the host runs it: no compression, bounded messages."""
    config = uvicorn.Config(
        Starlette(routes=routes),
        host="127.0.0.1",
        port=0,
        log_level="error",
        ws="websockets-sansio",
        ws_max_size=Limits().body,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield Running(server.servers[0].sockets[0].getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def running(service: DemoService) -> Iterator[Running]:
    limits = Limits(read_s=1.0)
    made = (rest.routes(service, limits), openpi.routes(service, limits), vla_eval.routes(service, limits))
    with serving([route for routes in made for route in routes], service) as found:
        yield found


@pytest.fixture
def zmq_address(service: DemoService) -> Iterator[Callable[[], str]]:
    """`serve_zmq` on a free port, on a thread with a loop of its own; called, it gives the address."""
    bound: list[str] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(
        gr00t.serve_zmq(service, "tcp://127.0.0.1:0", Limits(), Callers([Token("secret")]), on_bound=bound.append)
    )

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: bool(bound))
    yield lambda: bound[0]
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


def wait_for(true: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def golden(name: str) -> Path:
    return Path(__file__).parent / "golden" / name
