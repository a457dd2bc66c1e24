"""What happens when something breaks? `python -m benchmarks.serve.faults --out FILE`. Two minutes.

Killed and frozen clients and servers, hostile peers, a drain, a cut network. After each, a well-behaved robot must get
exactly the action of its own newest picture, or none. Engine faults, NaN and clocks that jump are tests/serve's.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from benchmarks import study
from benchmarks.serve.frames import Frame, frames
from benchmarks.serve.network import cut
from benchmarks.serve.results import Fault, ServeFaultsResult
from benchmarks.serve.server import Server, demo_artifact, serving, stop
from benchmarks.serve.wire import WebSocketRobot, observation

FRAMES: Final = 8
HUGE: Final = 200 << 20  # bytes of a body
CONNECTIONS: Final = 1000
DRAIN_S: Final = 5.0
START_S: Final = 60.0  # of a child process
GROWTH_MIB: Final = 64.0  # of the server, under a hostile peer

Scene = Callable[[Server, list[Frame]], str]  # what was seen; AssertionError where it is not what it has to be


def _acts(server: Server, pictures: list[Frame], name: str) -> None:
    """A robot that behaves is answered right."""
    robot = WebSocketRobot(server.addresses["native"], name)
    for frame in pictures:
        found = robot.act(frame.image, frame.instruction)
        assert found.tokens == frame.tokens, f"{name} got {found.tokens or found.code}, expected {frame.tokens}"
    robot.close()


def _ask_for_ever(address: str, frame: Frame) -> None:
    robot = WebSocketRobot(address, "doomed")
    while True:
        robot.act(frame.image, frame.instruction)


def client_killed(server: Server, pictures: list[Frame]) -> str:
    child = multiprocessing.get_context("spawn").Process(
        target=_ask_for_ever, args=(server.addresses["native"], pictures[0]), daemon=True
    )
    child.start()
    assert child.pid is not None
    asking = _wait(lambda: _gauge(server, "edgevla_sessions") > 0, START_S)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert asking, "the client never asked"
    _wait(lambda: _gauge(server, "edgevla_sessions") == 0, 5)
    left = _gauge(server, "edgevla_sessions")
    _acts(server, pictures, "other")
    assert not left, f"{left:g} sessions are still kept"
    return "its session was dropped, another robot got its own actions"


def same_name_again(server: Server, pictures: list[Frame]) -> str:
    """A robot that reconnects under its name never hears what its older connection asked."""
    with connect(f"{server.addresses['native']}?robot=arm", compression=None) as old:
        old.recv(10)
        old.send(observation(pictures[0].image, pictures[0].instruction, 1))
        _acts(server, pictures[1:], "arm")
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            while True:
                old.recv(2)
    return "the new connection got the actions of its own pictures only"


def server_frozen(server: Server, pictures: list[Frame]) -> str:
    robot = WebSocketRobot(server.addresses["native"], "patient", timeout_s=1.0)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        robot.act(pictures[0].image, pictures[0].instruction)
    except TimeoutError:
        return "the client's own deadline ended the wait, and there was no action"
    finally:
        os.kill(server.pid, signal.SIGCONT)
        with contextlib.suppress(ConnectionClosed):
            robot.close()
    raise AssertionError("a frozen server answered")


def huge_bodies(server: Server, pictures: list[Frame]) -> str:
    before = server.rss_bytes()
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
            peer.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % HUGE)
            with contextlib.suppress(ConnectionError):
                for _ in range(HUGE >> 20):
                    peer.sendall(bytes(1 << 20))
    grown = (server.rss_bytes() - before) / 2**20
    _acts(server, pictures, "after-bodies")
    assert grown < GROWTH_MIB, f"the server grew by {grown:.0f} MiB"
    return f"refused; the server grew by {grown:.0f} MiB"


def drips(server: Server, pictures: list[Frame]) -> str:
    """Slow-loris: 50 peers that send a header's bytes for as long as they may."""
    peers = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(50)]
    began, alive = time.monotonic(), list(peers)
    while alive and time.monotonic() - began < 20:
        for peer in list(alive):
            try:
                peer.sendall(b"P" if time.monotonic() - began < 0.5 else b"x")
            except OSError:
                alive.remove(peer)
        time.sleep(0.5)
    _acts(server, pictures, "beside-drips")
    for peer in peers:
        peer.close()
    assert not alive, f"{len(alive)} of {len(peers)} were let drip for 20 s"
    return f"all cut off after {time.monotonic() - began:.0f} s, others were answered"


def thousand_connections(server: Server, pictures: list[Frame]) -> str:
    before, peers, refused = server.rss_bytes(), [], 0
    for _ in range(CONNECTIONS + 100):
        try:
            peers.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        except OSError:
            refused += 1
    grown = (server.rss_bytes() - before) / 2**20
    for peer in peers:
        peer.close()
    time.sleep(1)
    _acts(server, pictures, "after-crowd")
    assert grown < GROWTH_MIB, f"the server grew by {grown:.0f} MiB"
    return f"{len(peers)} opened, {refused} refused; the server grew by {grown:.0f} MiB; robots were answered after it"


def drain(server: Server, pictures: list[Frame]) -> str:
    with connect(f"{server.addresses['native']}?robot=drained", compression=None) as robot:
        robot.recv(10)
        for number, frame in enumerate(pictures):
            robot.send(observation(frame.image, frame.instruction, number))
        began = time.monotonic()
        code = stop(server.process)
        took, closed = time.monotonic() - began, None
        try:
            while True:
                robot.recv(5)
        except ConnectionClosed as error:
            closed = error.rcvd.code if error.rcvd else None
    assert code == 0, f"exit code {code}"
    assert took <= DRAIN_S, f"{took:.1f} s"
    assert closed == 1001, f"close code {closed}"
    return f"exit 0 after {took:.1f} s, the socket was closed with 1001"


def server_killed(server: Server, pictures: list[Frame]) -> str:
    robot = WebSocketRobot(server.addresses["native"], "orphan")
    robot.act(pictures[0].image, pictures[0].instruction)
    os.kill(server.pid, signal.SIGKILL)
    try:
        robot.act(pictures[1].image, pictures[1].instruction)
    except (ConnectionClosed, InvalidStatus, OSError) as error:
        return f"the client got {type(error).__name__}, and no action"
    raise AssertionError("a dead server answered")


SCENES: Final[dict[Scene, tuple[str, str]]] = {
    client_killed: ("kill -9 of a client that asks", "what is kept for it is dropped, others are served"),
    same_name_again: ("a robot connects again while its old connection asks", "only its newest picture's action"),
    server_frozen: ("SIGSTOP of the server", "the client times out, and has no action"),
    huge_bodies: ("8 bodies of 200 MB", "refused by their length, memory bounded"),
    drips: ("50 slow-loris peers", "cut off, others are served"),
    thousand_connections: ("1100 idle connections", "memory bounded, served after it"),
    drain: ("SIGTERM under load", "exit 0 within 5 s, sockets closed with 1001"),
    server_killed: ("kill -9 of the server", "an error, and no action"),
}


def measure(artifact: Path) -> ServeFaultsResult:
    """A server for each scene."""
    pictures, faults = frames(artifact, FRAMES), []
    for scene, (name, expected) in SCENES.items():
        with serving(artifact) as server:
            try:
                found, held = scene(server, pictures), True
            except AssertionError as error:
                found, held = str(error), False
        faults.append(Fault(name=name, expected=expected, observed=found, held=held))
    return ServeFaultsResult(faults=[*faults, cut(artifact, pictures)])


def _wait(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def _gauge(server: Server, name: str) -> float:
    lines = [line for line in server.http("/metrics").splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[1]) if lines else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.faults", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact))


if __name__ == "__main__":
    study.run(main)
