"""What is lost with a replica of a fleet on Ray? `python -m benchmarks.serve.fleet --out FILE`. Three minutes.

Two replicas on this machine, 8 robots back to back; then again, while a replica is killed every few
seconds. Every reply's tokens are those that its picture gives in this process. It measures no speed: replicas share
this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import psutil

from benchmarks import study
from benchmarks.serve.frames import frames
from benchmarks.serve.load import run
from benchmarks.serve.results import Load
from benchmarks.serve.server import Server, demo_artifact, serving
from benchmarks.study import Target

REPLICAS: Final = 2
ROBOTS: Final = 8
FRAMES: Final = 64
KILLS: Final = 4
VALID_MS: Final = 1000.0
UP_S: Final = 60.0  # for a replica to be back
CALM_S: Final = 2.0  # between a replica that is back and the next kill
ACTOR: Final = "ray::Replica"  # how Ray names such a process


@dataclass(frozen=True, kw_only=True)
class FleetResult:
    """`undisturbed` and, with a replica killed now and then, `killed`. `back_s`: from each kill until all are up."""

    KIND: ClassVar[str] = "serve-ray"
    VERSION: ClassVar[int] = 1

    replicas: int
    undisturbed: Load
    killed: Load
    kills: int
    back_s: list[float]
    lost: int
    targets: list[Target]


def replicas_up(server: Server) -> int:
    found = [line for line in server.http("/metrics").splitlines() if line.startswith("edgevla_replicas ")]
    return int(float(found[0].split()[1])) if found else 0


def kill_a_replica(server: Server, number: int) -> float:
    """Seconds until it is back; UP_S where it is not."""
    children = psutil.Process(server.pid).children(recursive=True)
    actors = sorted(child.pid for child in children if child.cmdline()[:1] and child.cmdline()[0].startswith(ACTOR))
    began = time.monotonic()
    os.kill(actors[number % len(actors)], signal.SIGKILL)
    while replicas_up(server) == REPLICAS and time.monotonic() - began < UP_S:
        time.sleep(0.02)
    while replicas_up(server) < REPLICAS and time.monotonic() - began < UP_S:
        time.sleep(0.1)
    return time.monotonic() - began


async def disturbed(server: Server, asking: asyncio.Task[Load], kills: int) -> tuple[Load, list[float]]:
    """The load, and how long each replica that was killed under it was away."""
    back = list[float]()
    for number in range(kills):
        await asyncio.sleep(CALM_S)
        back.append(await asyncio.to_thread(kill_a_replica, server, number))
    return await asking, back


def measure(artifact: Path, seconds: float, kills: int = KILLS) -> FleetResult:
    """`seconds` for each load; long enough for the kills."""
    pictures = frames(artifact, FRAMES)
    longest = VALID_MS  # given, because by default it follows the speed of a shared machine
    options = ("--ray", "--replicas", str(REPLICAS), "--device", "cpu", "--valid-for-ms", str(longest))
    with serving(artifact, *options) as server:
        address = server.addresses["native"]
        undisturbed = asyncio.run(run(address, pictures, ROBOTS, seconds, None, longest))

        async def under_fire() -> tuple[Load, list[float]]:
            asking = asyncio.create_task(run(address, pictures, ROBOTS, seconds, None, longest))
            return await disturbed(server, asking, kills)

        killed, back = asyncio.run(under_fire())
    lost = sum(robot.refused.get("E_ENGINE", 0) for robot in killed.robots)
    wrong = [load.crossed + load.stale + load.unanswered for load in (undisturbed, killed)]
    return FleetResult(
        replicas=REPLICAS,
        undisturbed=undisturbed,
        killed=killed,
        kills=kills,
        back_s=[round(each, 2) for each in back],
        lost=lost,
        targets=[
            Target("replies crossed, stale, missing or with other tokens, undisturbed", wrong[0], "at most", 0),
            Target("replies crossed, stale, missing or with other tokens, replicas killed", wrong[1], "at most", 0),
            Target("replicas that came back", sum(each < UP_S for each in back), "at least", kills),
            Target("observations answered as lost", lost, "at least", 1),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.fleet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    parser.add_argument("--seconds", type=float, default=60.0, help="per load")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact, given.seconds))


if __name__ == "__main__":
    study.run(main)
