"""A server as `edge-vla serve` runs it, on a thread, with the demo policy in int4 behind real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_vla
from edge_vla.demo import BASE
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start
from edge_vla.export import Recipe, export
from edge_vla.runtime import Policy
from edge_vla.serve.host import HostOptions
from edge_vla.serve.lifecycle import Callbacks, ServeOptions, serve
from edge_vla.serve.loading import Choices, Served
from edge_vla.serve.middle import Ready

WORDS = "pick up the red cube"
Picture = NDArray[np.uint8]


@dataclass
class Live:
    """A running server: where it listens, what it serves, and how it ended."""

    port: int = 0
    served: Served | None = None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    stop: Callable[[], None] = lambda: None
    stages: list[str] = field(default_factory=list)

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def policy(self) -> Policy:
        assert self.served is not None
        return self.served.policy

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[1])

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels."""
        found = [row.rpartition(" ") for row in self.get("/metrics")[1].splitlines() if row.startswith(line)]
        return sum(float(value) for name, _, value in found if name == line)


def patient(**changes: Any) -> ServeOptions:
    """On a busy machine an image gets old: half a minute is fresh enough."""
    return ServeOptions(port=0, serving=HostOptions(valid_ms=30_000), **changes)


@contextmanager
def running(directory: Path, options: ServeOptions | None = None, *, wait: bool = True) -> Iterator[Live]:
    """The server until the block ends; `wait` for it to be ready."""
    live, listening, ready = Live(), threading.Event(), threading.Event()

    def on_listening(addresses: dict[str, str]) -> None:
        live.port = int(addresses["rest"].rpartition(":")[2].partition("/")[0])
        listening.set()

    def on_ready(served: Ready) -> None:
        assert isinstance(served, Served)
        live.served = served
        ready.set()

    def on_progress(stage: str, fraction: float) -> None:
        live.stages.append(stage)

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask_to_stop() -> None:
            loop.call_soon_threadsafe(stop.set)

        live.stop = ask_to_stop
        await serve(
            directory,
            Choices(),
            options or patient(),
            Callbacks(on_listening, on_progress, on_ready),
            stop,
        )

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 -- the test looks at it
            live.error = error
        finally:
            live.ended.set()
            listening.set()
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(20)
    if wait:
        assert ready.wait(60)
    try:
        yield live
    finally:
        if not live.ended.is_set():
            live.stop()
        assert live.ended.wait(10), "the server did not end"
        thread.join(10)


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def picture(seed: int) -> Picture:
    """What the camera of demo world 1 sees at the start of an evaluation episode."""
    state, _ = start(EVALUATION_SEEDS[seed], "pick")
    return np.asarray(render(state, world(1)))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo policy in int4. Read-only."""
    return export(BASE, tmp_path_factory.mktemp("served") / "int4", Recipe(bits=4)).directory


@pytest.fixture(scope="session")
def policy(artifact: Path) -> Policy:
    """The same policy in this process, for what the wire should have brought."""
    return edge_vla.load(artifact)


@pytest.fixture(scope="module")
def live(artifact: Path) -> Iterator[Live]:
    with running(artifact, patient()) as found:
        yield found
