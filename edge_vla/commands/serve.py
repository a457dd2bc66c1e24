"""`edge-vla serve`: one policy for many robots."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_vla.errors import BackendError, EdgeVLAError, ResourceError, UsageError
from edge_vla.options import Device, Kernel, Preprocessing, UnnormKey, Vision, choice, script
from edge_vla.terminal import err, out, say

if TYPE_CHECKING:
    from edge_vla.serve.host import HostOptions
    from edge_vla.serve.lifecycle import ServeOptions
    from edge_vla.serve.loading import Choices
    from edge_vla.serve.logs import LogFormat
    from edge_vla.serve.middle import Middle, Ready
    from edge_vla.serve.tokens import Token

log = logging.getLogger("edge_vla.serve")
PACKAGES = ("msgpack", "prometheus_client", "starlette", "uvicorn", "websockets", "zmq")
ENGINE = "engine"  # the name of the thread that runs the policy
TOKEN = "EDGE_VLA_TOKEN"  # an environment variable's name
STAGES = {
    "verify": "checking the files' hashes",
    "load": "loading the weights",
    "warm": "warming up",
    "golden": "replaying the golden frames",
    "measure": "measuring",
}

ValidFor = Annotated[float | None, typer.Option(min=1, help="How old an image may be when its action starts.")]
Compat = Annotated[
    str | None, typer.Option(help='openvla-exact: REST answers errors as OpenVLA\'s deploy.py, 200 and "error".')
]
WarmInstructions = Annotated[
    Path | None, typer.Option(help="A text file, an instruction a line, whose first actions are not to wait.")
]
RejectFrozen = Annotated[
    int | None, typer.Option(min=1, help="Refuse an image that is the one before it, so many times in a row.")
]
OnRay = Annotated[bool, typer.Option("--ray", help="Run the policy in Ray actors, one a GPU; robots share them.")]
Replicas = Annotated[int | None, typer.Option(min=1, help="With --ray: how many policies; one a GPU by default.")]
RayAddress = Annotated[str | None, typer.Option(help="With --ray: a cluster's address; by default this machine.")]


def serve(
    artifact: Annotated[Path, typer.Argument(help="An artifact's directory.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"A token a line, its limits behind it; or set {TOKEN}.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let a network ask without a token.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), for wss and https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="A web page's origin that may ask; repeat.")] = None,
    unnorm_key: UnnormKey = None,
    slo: Annotated[str | None, typer.Option(help="A latency to keep by refusing early, for example p99=150ms.")] = None,
    valid_for_ms: ValidFor = None,
    max_robots: Annotated[int, typer.Option(min=1, help="Robots whose drafts are kept at a time.")] = 256,
    compat: Compat = None,
    zmq: Annotated[str | None, typer.Option(help="GR00T's ZeroMQ address, for example tcp://127.0.0.1:5555.")] = None,
    page: Annotated[bool, typer.Option(help="A live page at the port's address.")] = True,
    record: Annotated[Path | None, typer.Option(help="A folder for frames: images, instructions, actions.")] = None,
    record_gb: Annotated[float, typer.Option(min=0.001, help="How large it may get.")] = 10,
    redact: Annotated[bool, typer.Option("--redact", help="Record marks instead of instructions.")] = False,
    dtype: Annotated[str, typer.Option(help="Arithmetic: bf16 or fp32.")] = "bf16",
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
    preprocess: Preprocessing = "none",
    warm_instructions: WarmInstructions = None,
    ray: OnRay = False,
    replicas: Replicas = None,
    ray_address: RayAddress = None,
    reject_frozen: RejectFrozen = None,
    log_format: Annotated[str, typer.Option(help="Logs: json or text.")] = "text",
) -> None:
    """Serve an artifact to many robots: our own WebSocket, OpenVLA's REST, openpi, vla-eval and GR00T.

    Ready when its hashes, golden frames and rate are known. Ends on SIGTERM within five seconds.
    """
    require_extra(PACKAGES, "serve")
    from edge_vla.serve.lifecycle import ServeOptions
    from edge_vla.serve.loading import Choices
    from edge_vla.serve.record import RecordOptions

    options = ServeOptions(
        host=host,
        port=port,
        tokens=read_tokens(token_file),
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        origins=tuple(origin or ()),
        exact=compat is not None and bool(choice("--compat", compat, ("openvla-exact",))),
        zmq=zmq,
        page=page,
        record=None if record is None else RecordOptions(record, int(record_gb * 1e9), redact),
        serving=host_options(max_robots, slo, valid_for_ms, warm_instructions, reject_frozen),
    )
    form: LogFormat = "json" if choice("--log-format", log_format, ("json", "text")) == "json" else "text"
    middle = middle_of(ray, replicas, ray_address, device)
    live(artifact, Choices(device, vision, kernel, dtype, unnorm_key, script(preprocess)), options, form, middle)


def host_options(
    robots: int, slo: str | None, valid_ms: float | None, warmed: Path | None, reject_frozen: int | None
) -> HostOptions:
    """How observations are served. UsageError for an `slo` that cannot be read."""
    from edge_vla.serve.host import HostOptions
    from edge_vla.serve.limits import Limits
    from edge_vla.serve.pace import Slo

    target = None if slo is None else Slo.parse(slo)
    return HostOptions(Limits(robots=robots), target, valid_ms, read_instructions(warmed), reject_frozen)


def middle_of(
    ray: bool, replicas: int | None, address: str | None, device: str
) -> Callable[[HostOptions], Middle] | None:
    """What makes the server's middle: the policy here (None), or a fleet on Ray."""
    if not ray:
        if replicas is not None or address is not None:
            raise UsageError("--replicas and --ray-address are of a fleet: add --ray")
        return None
    require_extra(("ray",), "ray")
    from edge_vla.serve.fleet import Fleet
    from edge_vla.serve.ray_fleet import RayCluster

    return partial(Fleet, RayCluster(address, replicas, device))


def live(
    artifact: Path,
    choices: Choices,
    options: ServeOptions,
    form: LogFormat,
    middle: Callable[[HostOptions], Middle] | None = None,
) -> None:
    """Serve until a signal comes."""
    from edge_vla.serve import lifecycle, logs
    from edge_vla.serve.host import Host

    logs.set_up(form)
    on_stage, on_served = (log_stage, log_served) if form == "json" else (show_stage, show_served)
    callbacks = lifecycle.Callbacks(show_addresses, on_stage, on_served)
    try:
        run(lifecycle.serve(artifact, choices, options, callbacks, middle=middle or Host))
    except EdgeVLAError as error:
        end_if_the_engine_runs(error)
        raise
    end_if_the_engine_runs(None)


def run(server: Coroutine[Any, Any, None]) -> None:
    """On uvloop where it is installed, whose event loop takes a third less of each message's time."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(server)
    else:
        importlib.import_module("uvloop").run(server)


def show_addresses(addresses: dict[str, str]) -> None:
    for name, address in addresses.items():
        out.print(f"{name:9} {address}")
    sys.stdout.flush()


def show_stage(stage: str, fraction: float) -> None:
    err.print(f"{100 * fraction:3.0f} %  {STAGES[stage]}")


def log_stage(stage: str, fraction: float) -> None:
    log.info("%.0f %%: %s", 100 * fraction, STAGES[stage])


def show_served(served: Ready) -> None:
    for line in described(served):
        err.print(line)


def log_served(served: Ready) -> None:
    for line in described(served):
        log.info("%s", line)


def described(served: Ready) -> tuple[str, str, str]:
    """What is served, what is done to images first, and what this device sustains."""
    from edge_vla.openvla import evaluation
    from edge_vla.serve.pace import sustained
    from edge_vla.serve.server import RATES_HZ

    about = served.metadata
    count = served.replicas
    robots = ", ".join(f"{count * sustained(served.service_s, rate)} robots at {rate} Hz" for rate in RATES_HZ)
    device = "this device sustains" if count == 1 else f"{count} replicas sustain"
    return (
        f"ready: {about.model} ({about.artifact}), {served.bits} bits, unnorm_key {served.key}",
        evaluation.described(about.preprocess if about.preprocess in evaluation.SCRIPTS else "none"),
        f"{device} {robots}: {1e3 * served.service_s:.1f} ms an action",
    )


def end_if_the_engine_runs(error: EdgeVLAError | None) -> None:
    """End the process now where its device is still at work: Python would wait for it, or crash beside it."""
    if not any(thread.name == ENGINE and thread.is_alive() for thread in threading.enumerate()):
        return
    if error is not None:
        say("error", "red", str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if error is None else error.exit_code)


def require_extra(packages: Sequence[str], extra: str) -> None:
    """BackendError unless the extra's packages are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"this needs {', '.join(missing)}: pip install 'edge-vla[{extra}]'")


def read_token(path: Path | None) -> str | None:
    """A client's token: a file's only line, or the environment's. Never an argument, which every process could read."""
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"--token-file {path} cannot be read: {error}") from error
    if not token or len(token.split()) != 1:
        raise UsageError(f"--token-file {path}: expected one line with one token: openssl rand -hex 32 > {path}")
    return token


def read_tokens(path: Path | None) -> tuple[Token, ...]:
    """A file's tokens, or the environment's one. Never an argument, which every process could read."""
    from edge_vla.serve.tokens import FORM, Token, parse

    if path is None:
        given = os.environ.get(TOKEN)
        return (Token(given),) if given else ()
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"--token-file {path} cannot be read: {error}") from error
    except UsageError as error:
        raise UsageError(f"--token-file {path}: {error}") from error
    if not found:
        raise UsageError(f"--token-file {path}: expected lines of {FORM}: openssl rand -hex 32 > {path}")
    return found


def read_instructions(path: Path | None) -> tuple[str, ...]:
    """The lines of a file that say anything."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"--warm-instructions {path} cannot be read: {error}") from error
    found = tuple(dict.fromkeys(line for line in lines if line))
    if not found:
        raise UsageError(f"--warm-instructions {path} is empty: write an instruction a line, as robots will send them")
    return found
