"""The demo policy behind a real server, for clients of other projects to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edge_vla
from edge_vla.demo import BASE, statistics_key
from edge_vla.serve import gr00t, openpi, rest, vla_eval
from edge_vla.serve.limits import Limits
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import demo_service, serving, wait_for

TOKEN = "secret"


@dataclass(frozen=True)
class Addresses:
    port: int
    zmq_port: int
    action: list[float]

    def settings(self) -> dict[str, Any]:
        """What the client scripts read."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "http": f"http://127.0.0.1:{self.port}",
            "ws": f"ws://127.0.0.1:{self.port}",
            "zmq_port": self.zmq_port,
            "zmq_token": TOKEN,
            "action": self.action,
            "unnorm_key": statistics_key(1),
        }


@contextmanager
def serving_demo(scratch: Path) -> Iterator[Addresses]:
    policy = edge_vla.load(BASE, dtype="fp32")
    service, limits = demo_service(policy), Limits()
    made = (rest.routes(service, limits), openpi.routes(service, limits), vla_eval.routes(service, limits))
    bound: list[str] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(gr00t.serve_zmq(service, "tcp://127.0.0.1:0", limits, TOKEN, on_bound=bound.append))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: bool(bound))
    action = policy.act(picture(), INSTRUCTION).values
    with serving([route for routes in made for route in routes], service) as running:
        yield Addresses(running.port, int(bound[0].rpartition(":")[2]), np.asarray(action).tolist())
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)
