"""A server's life: listen, load, be ready, drain, end with a code that a supervisor understands.

Healthy as soon as it listens, ready when the policy has proved itself. SIGTERM and SIGINT drain: nothing new, what runs
gets DRAIN_S, what waits is told, sockets close with 1001, all within five seconds. A lost or hanging device ends the
process with an error, so that it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn

from edge_vla.errors import BackendError, DeviceLostError, ResourceError, UsageError
from edge_vla.serve import tokens
from edge_vla.serve.counted import Counted
from edge_vla.serve.gr00t import serve_zmq
from edge_vla.serve.guard import Access, Guard, is_loopback, protocol
from edge_vla.serve.host import Host, HostOptions
from edge_vla.serve.loading import Choices, OnProgress
from edge_vla.serve.middle import Middle, Ready
from edge_vla.serve.record import Recorder, RecordOptions
from edge_vla.serve.server import application, protocols
from edge_vla.serve.supervisor import Supervisor
from edge_vla.serve.tokens import Token

log = logging.getLogger("edge_vla.serve")
DRAIN_S: Final = 2.0  # for the action that runs
FLUSH_S: Final = 0.1  # for the last replies to leave
CLOSE_S: Final = 1  # for connections to close
CHECK_S: Final = 0.25  # between two looks at the device
BACKLOG: Final = 128


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, who may ask, and how observations are served. `zmq` is GR00T's address, as tcp://HOST:PORT."""

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Sequence[Token] = ()
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    origins: Sequence[str] = ()
    exact: bool = False
    zmq: str | None = None
    page: bool = True
    record: RecordOptions | None = None
    serving: HostOptions = field(default_factory=HostOptions)

    def check(self) -> None:
        """UsageError for what would be open to a network by mistake, or cannot work."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together: give both or neither")
        tokens.check(self.tokens)
        addresses = [self.host] + ([self.zmq.rpartition("//")[2].rpartition(":")[0]] if self.zmq else [])
        exposed = [address for address in addresses if not is_loopback(address.strip("[]"))]
        if exposed and not self.tokens and not self.insecure:
            raise UsageError(
                f"{exposed[0]} can be reached from the network: give --token-file FILE (or EDGE_VLA_TOKEN), "
                "or --insecure to let everybody move the robot"
            )


@dataclass(frozen=True)
class Callbacks:
    """What a command shows: addresses by protocol when it listens, progress, what it serves when it is ready."""

    on_listening: Callable[[dict[str, str]], None] = lambda _: None
    on_progress: OnProgress = lambda _stage, _fraction: None
    on_ready: Callable[[Ready], None] = lambda _: None


class _Uvicorn(uvicorn.Server):
    """uvicorn, with signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    directory: Path,
    choices: Choices,
    options: ServeOptions,
    callbacks: Callbacks | None = None,
    stop: asyncio.Event | None = None,
    middle: Callable[[HostOptions], Middle] = Host,
) -> None:
    """Until `stop` is set or a signal comes. Raises what ends the server: loading's errors, DeviceLostError."""
    options.check()
    shown, stop = callbacks or Callbacks(), stop or asyncio.Event()
    host = middle(options.serving)
    recorder = None if options.record is None else Recorder(options.record)
    host.watchers.extend([] if recorder is None else [recorder])
    callers = tokens.Callers(options.tokens)
    access = Access(callers, is_loopback(options.host) and not options.tokens, options.origins)
    redact = options.record is not None and options.record.redact
    guard = application(host, access, exact=options.exact, page=options.page, redact=redact)
    listener = _listen(options.host, options.port)
    server = _Uvicorn(_config(guard, options))
    host.metrics.connections.set_function(lambda: len(server.server_state.connections))
    serving = asyncio.create_task(server.serve([listener]))
    front_ends = set[asyncio.Task[None]]()
    with _signals(stop, host):
        try:
            shown.on_listening(addresses(options, listener.getsockname()[1]))
            if options.zmq is not None:
                limits, front = options.serving.limits, Counted(host, "gr00t")
                front_ends.add(asyncio.create_task(serve_zmq(front, options.zmq, limits, callers)))
            await _live(host, directory, choices, shown, stop, {serving, *front_ends})
        finally:
            await _drain(host, guard, server, serving, front_ends)
            if recorder is not None:
                recorder.close()


async def _live(
    host: Middle,
    directory: Path,
    choices: Choices,
    shown: Callbacks,
    stop: asyncio.Event,
    tasks: set[asyncio.Task[None]],
) -> None:
    """Load, be ready, and watch the device until it is time to stop."""
    supervisor = Supervisor()
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(host.start(directory, choices, shown.on_progress))
    try:
        await asyncio.wait({loading, stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            shown.on_ready(loading.result())
            gc.freeze()  # what was loaded stays: no collection looks at it again
            supervisor.notify("READY=1", "STATUS=ready")
        last = -1e9
        loop = asyncio.get_running_loop()
        while not stop.is_set() and loading.done():
            for task in tasks:
                if task.done():
                    task.result()
                    raise BackendError("a listener ended by itself; the log says why")
            if host.lost.is_set() or host.stalled:
                raise _lost(host)
            if supervisor.watchdog_s is not None and loop.time() - last > supervisor.watchdog_s / 3:
                supervisor.notify("WATCHDOG=1")
                last = loop.time()
            await asyncio.wait({stopping}, timeout=CHECK_S)
    finally:
        supervisor.notify("STOPPING=1")
        stopping.cancel()
        if not loading.done():
            loading.cancel()


async def _drain(
    host: Middle, guard: Guard, server: uvicorn.Server, serving: asyncio.Task[None], front_ends: set[asyncio.Task[None]]
) -> None:
    log.info("draining")
    for listener in getattr(server, "servers", []):
        listener.close()
    await host.drain(DRAIN_S)
    await asyncio.sleep(FLUSH_S)
    await guard.drain()
    server.should_exit = True
    for task in front_ends:
        task.cancel()
    await asyncio.wait({serving, *front_ends}, timeout=2 * CLOSE_S)
    serving.cancel()
    await asyncio.gather(serving, *front_ends, return_exceptions=True)


def addresses(options: ServeOptions, port: int) -> dict[str, str]:
    """The address of each protocol, by its name."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    secure = "s" if options.tls_cert is not None else ""
    found = {
        front.name: f"{front.scheme}{secure}://{host}:{port}{front.path}" for front in protocols(exact=options.exact)
    }
    return found | ({"gr00t": options.zmq} if options.zmq else {})


def _config(app: Guard, options: ServeOptions) -> uvicorn.Config:
    limits = options.serving.limits
    return uvicorn.Config(
        app,
        http=protocol(limits.read_s, limits.connections),
        ws="websockets-sansio",
        ws_max_size=limits.body,
        ws_ping_interval=limits.ping_s,
        ws_ping_timeout=limits.pong_s,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.headers,
        timeout_graceful_shutdown=CLOSE_S,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio leaves Nagle's algorithm on: answers in two parts take 40 ms more.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ResourceError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    return listener


@contextlib.contextmanager
def _signals(stop: asyncio.Event, host: Middle) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`, SIGUSR1 logs the last minute; off the main thread they are somebody else's."""
    loop, taken = asyncio.get_running_loop(), list[signal.Signals]()
    actions: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: stop.set,
        signal.SIGINT: stop.set,
        signal.SIGUSR1: partial(_trace, host),
    }
    for number, action in actions.items():
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, action)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def _trace(host: Middle) -> None:
    """A line for each robot: its last minute's latencies and refusals. No image, instruction or action."""
    for robot in host.activity.view():
        spread = f"p50 {robot.p50_ms} ms, p99 {robot.p99_ms} ms, last {robot.latencies_ms}"
        log.info("trace of %r: %.2f Hz, %s, refused %s", robot.robot, robot.hz, spread, robot.refused)


def _lost(host: Middle) -> DeviceLostError:
    if isinstance(host.error, DeviceLostError):
        return host.error
    return DeviceLostError("the device does not come back from an action: the server ends, to be started again")
