"""A robot whose network is cut: our client in a network namespace of its own, and its only link taken down for a while.

Needs root and `ip`. The client asks without a pause; whatever action it gets must be that of its own newest picture.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import study
from benchmarks.serve.frames import Frame
from benchmarks.serve.results import Fault
from benchmarks.serve.server import Server, serving

NAME: Final = "the network cut for 3 s while a robot asks (namespaces)"
EXPECTED: Final = "on_hold fires, no action during the cut or of another picture, actions again after it"
BEFORE_S, CUT_S, AFTER_S = 2.0, 3.0, 4.0
START_S: Final = 30.0
SETTLED_S: Final = 0.5  # what was on its way when the link went down
WATCHDOG_MS: Final = 1000.0
DEADLINE_MS: Final = 400.0
HERE, THERE = "10.213.77.1", "10.213.77.2"
CLIENT: Final = """
import json, sys, time
import numpy as np
from edge_vla.serve.client import ClientError, Robot
def say(kind, detail=None): print(json.dumps([time.monotonic(), kind, detail]), flush=True)
data = np.load(sys.argv[2])
robot = Robot(sys.argv[1], "cut", watchdog_ms=%f, on_hold=lambda seconds: say("hold", seconds))
for step in range(10**9):
    index = step %% len(data["images"])
    try:
        action = robot.act(data["images"][index], str(data["instructions"][index]), deadline_ms=%f)
        say("action", list(action.tokens) == data["tokens"][index].tolist())
    except ClientError as error:
        say("none", type(error).__name__)
        time.sleep(0.02)
"""


@dataclass(frozen=True)
class Event:
    """What the client said: `hold`, `action` with whether its tokens were its picture's, `none` with the error."""

    at: float
    kind: str
    detail: object


def cut(artifact: Path, pictures: Sequence[Frame]) -> Fault:
    """Held is None where this machine does not let us make namespaces."""
    name = f"edgevla-{os.getpid()}"
    try:
        with namespace(name) as link, serving(artifact, "--host", "0.0.0.0", "--insecure") as server:
            return _verdict(*_watch(server, pictures, name, link))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        return Fault(name=NAME, expected=EXPECTED, observed=f"skipped: no namespaces here ({error})", held=None)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A namespace with an address THERE, linked to HERE; yields our end's device."""
    ours, theirs = f"ve{os.getpid()}", f"vp{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _ip("addr", "add", f"{HERE}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "addr", "add", f"{THERE}/30", "dev", theirs)
        _ip("-n", name, "link", "set", theirs, "up")
        yield ours
    finally:
        _ip("netns", "del", name)  # and the link with it


def _watch(server: Server, pictures: Sequence[Frame], name: str, link: str) -> tuple[list[Event], float, float]:
    """What the client said, and when the cut began and ended."""
    with tempfile.TemporaryDirectory() as folder:
        data, said = Path(folder) / "pictures.npz", Path(folder) / "said"
        np.savez(
            data,
            images=np.stack([frame.image for frame in pictures]),
            instructions=np.array([frame.instruction for frame in pictures]),
            tokens=np.array([frame.tokens for frame in pictures]),
        )
        code = CLIENT % (WATCHDOG_MS, DEADLINE_MS)
        python = [sys.executable, "-c", code, f"ws://{HERE}:{server.port}", str(data)]
        with said.open("w", encoding="utf-8") as out:
            client = subprocess.Popen(["ip", "netns", "exec", name, *python], stdout=out, env=study.child_environment())
            try:
                until = time.monotonic() + START_S
                while "action" not in said.read_text(encoding="utf-8") and time.monotonic() < until:
                    time.sleep(0.05)
                time.sleep(BEFORE_S)
                _ip("link", "set", link, "down")
                began = time.monotonic()
                time.sleep(CUT_S)
                ended = time.monotonic()
                _ip("link", "set", link, "up")
                time.sleep(AFTER_S)
            finally:
                client.kill()
                client.wait()
        lines = [line for line in said.read_text(encoding="utf-8").splitlines() if line.endswith("]")]
        return [Event(*json.loads(line)) for line in lines], began, ended


def _verdict(events: list[Event], began: float, ended: float) -> Fault:
    before = [event for event in events if event.kind == "action" and event.at < began]
    during = [event for event in events if event.kind == "action" and began + SETTLED_S < event.at < ended]
    after = [event for event in events if event.kind == "action" and event.at > ended]
    holds = [event for event in events if event.kind == "hold" and began < event.at < ended]
    wrong = sum(event.kind == "action" and event.detail is not True for event in events)
    errors = sorted({str(event.detail) for event in events if event.kind == "none" and event.at > began})
    back = f"{after[0].at - ended:.1f} s after it" if after else "never"
    held = bool(before) and not during and bool(after) and bool(holds) and not wrong
    held_after = f"{1e3 * (holds[0].at - began):.0f} ms" if holds else "never"
    return Fault(
        name=NAME,
        expected=EXPECTED,
        observed=f"{len(before)} actions before, {len(during)} in the cut, {len(after)} after, {wrong} of another "
        f"picture; on_hold after {held_after}, errors {', '.join(errors)}; acting again {back}",
        held=held,
    )


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
