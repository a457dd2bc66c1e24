"""Does the loop lose an action that nothing took from it? `python -m benchmarks.robot.closed_loop --out FILE`.

The demo world is a camera (MJPEG over HTTP) and a robot (the reference receiver behind a relay) in this process;
`edge-vla act` is another one, at 5 Hz. Faults are injected at known times, one after another; every turn of the loop's
log is then held against them, and every command that the robot took against the log. On a machine that others use,
put `chrt --rr 1 env OMP_NUM_THREADS=1` before the command: both processes then get the processor when they need it,
which is a few per cent of the time. One thread, because the CPU engine's threads wait for each other without sleeping.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.robot.accounting import Line, result
from benchmarks.robot.faults import BACK_S, FAULTS, Injected, Site
from benchmarks.robot.relay import Relay
from benchmarks.robot.stream import Stream
from benchmarks.serve.server import COMMAND, demo_artifact
from edge_vla.demo import statistics_key
from edge_vla.demo.robot import DECLARATION, Table
from edge_vla.errors import ResourceError
from edge_vla.robot.receiver import Receiver, serve
from edge_vla.robot.units import Declaration

log = logging.getLogger(__name__)

FPS: Final = 20.0
FIRST_S: Final = 15.0  # before the first fault
EVERY_S: Final = 13.0  # from one fault to the next
STARTS_S: Final = 120.0


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """The robot's side, running."""
    table, ended = Table(1, block="red"), threading.Event()
    receiver = Receiver(Declaration.read(DECLARATION).dims)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Relay(listener.getsockname()) as between,
        Stream(table.picture, FPS) as stream,
    ):
        found = Site(table, stream, between, receiver)
        rest = found.rests.append
        thread = threading.Thread(
            target=lambda: serve(listener, receiver, found.act, rest, ended=ended.is_set), daemon=True
        )
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join(5.0)


def inject(here: Site, until: float, every_s: float) -> list[Injected]:
    """One fault after another, in turn, at moments that are no multiple of the loop's period."""
    found, chance = list[Injected](), random.Random(0)
    for fault in itertools.cycle(FAULTS):
        if time.monotonic() + fault.seconds + BACK_S + every_s / 2 > until:
            return found
        began = time.monotonic()
        fault.begin(here)
        time.sleep(fault.seconds)
        fault.end(here)
        found.append(Injected(fault, began, time.monotonic()))
        time.sleep(max(BACK_S, every_s - fault.seconds + chance.random()))
    return found


def run(artifact: Path, minutes: float, every_s: float) -> tuple[list[Line], Site, list[Injected]]:
    """The loop's log, the robot's side and what was injected."""
    with tempfile.TemporaryDirectory() as directory, site() as here:
        path = Path(directory) / "log.jsonl"
        arguments = ["act", str(artifact), "--instruction", here.table.instruction, "--robot", str(DECLARATION)]
        arguments += ["--camera", here.stream.address, "--to", f"tcp://127.0.0.1:{here.relay.port}", "--rate", "5"]
        arguments += ["--seconds", str(60 * minutes), "--unnorm-key", statistics_key(1), "--log", str(path)]
        command = [sys.executable, "-c", COMMAND, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=study.child_environment()) as process:
            began = _started(here, process)
            time.sleep(min(FIRST_S, every_s))
            injected = inject(here, began + 60 * minutes, every_s)
            summary, _ = process.communicate(timeout=60 * minutes + STARTS_S)
            if process.returncode:
                raise ResourceError(f"edge-vla act ended with {process.returncode}")
        sys.stderr.write(summary)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], here, injected


def _started(here: Site, process: subprocess.Popen[str]) -> float:
    until = time.monotonic() + STARTS_S
    while not here.taken:
        if process.poll() is not None or time.monotonic() > until:
            raise ResourceError("edge-vla act sent nothing: see its message above")
        time.sleep(0.05)
    return time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds from one fault to the next")
    parser.add_argument("--artifact", type=Path, help="the demo policy's; made where there is none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        artifact = demo_artifact(given.artifact or Path(directory) / "artifact")
        lines, here, injected = run(artifact, given.minutes, given.every)
    body = result(lines, here, injected, given.minutes)
    study.write_result(given.out, body)
    for target in body.targets:
        log.info("%s: %g, %s %g", target.name, target.measured, target.comparison, target.bound)


if __name__ == "__main__":
    study.run(main)
