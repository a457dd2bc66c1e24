"""A real `edge-vla serve` as a child process, and the demo policy as the artifact it serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from benchmarks import study
from edge_vla.errors import BackendError

READY_S: Final = 120.0
STOP_S: Final = 10.0
COMMAND: Final = "import sys; from edge_vla.cli import main; main(sys.argv[1:])"


@dataclass
class Server:
    """A running server. `addresses` by protocol, as it printed them."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.addresses["openpi"].split("://")[1].split(":")[1].split("/")[0])

    def http(self, path: str) -> str:
        """What GET answers, whatever its status."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())

    def ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return bool(json.loads(self.http("/readyz"))["status"] == "ready")
        return False

    def loop_cpu_ms(self) -> float:
        """What the event loop's thread has computed, without the engine's."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e6

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def demo_artifact(directory: Path) -> Path:
    """The demo policy in four bits: there, or made in a subprocess, so that this one stays small."""
    if not (directory / "manifest.json").exists():
        code = (
            "import sys; from pathlib import Path; from edge_vla.demo import BASE; "
            "from edge_vla.export import Recipe, export; export(str(BASE), Path(sys.argv[1]), Recipe(bits=4))"
        )
        subprocess.run([sys.executable, "-c", code, str(directory)], check=True, env=study.child_environment())
    return directory


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(artifact: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`edge-vla serve ARTIFACT --port 0 OPTIONS`, ready. Ended by SIGTERM, or SIGKILL where that does not do."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as errors:
            process = _start(artifact, options, errors, environment or {})
        try:
            server = Server(process, _addresses(process, log), log)
            wait_until_ready(server)
            yield server
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> int:
    """Its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_until_ready(server: Server) -> None:
    until = time.monotonic() + READY_S
    while not server.ready():
        if server.process.poll() is not None or time.monotonic() > until:
            raise BackendError(f"the server did not get ready: {server.log.read_text(encoding='utf-8')[-600:]}")
        time.sleep(0.05)


def _start(
    artifact: Path, options: Sequence[str], errors: IO[str], environment: dict[str, str]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "serve", str(artifact), "--port", "0", *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**study.child_environment(), "COLUMNS": "200", **environment},
    )


def _addresses(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """The lines `NAME ADDRESS` that the server prints once it listens; what it prints later is read and dropped."""
    found: dict[str, str] = {}
    assert process.stdout is not None
    while "vla-eval" not in found:
        line = process.stdout.readline()
        if not line:
            raise BackendError(f"the server ended: {log.read_text(encoding='utf-8')[-600:]}")
        name, _, address = line.strip().partition(" ")
        found[name] = address.strip()
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return found
