"""How fairly do robots share one policy? `python -m benchmarks.serve.fairness --out FILE`. Five minutes.

1, 2, 4 and 8 robots ask back to back; then 8 robots send on a beat, together twice what the policy can do, then back to
back again. Each robot has pictures of its own, and every reply's tokens are those that its picture gives in process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.serve.frames import frames
from benchmarks.serve.load import run
from benchmarks.serve.results import FairnessResult
from benchmarks.serve.server import demo_artifact, serving
from benchmarks.study import Target

ROBOTS: Final = (1, 2, 4, 8)
FRAMES: Final = 64
OVERLOAD: Final = 2.0  # times the capacity
JAIN: Final = 0.98
GOODPUT: Final = 0.9  # of the capacity, in overload


def measure(artifact: Path, seconds: float, note: str = "") -> FairnessResult:
    """`seconds` per load."""
    pictures = frames(artifact, FRAMES)
    with serving(artifact) as server:
        address, longest = server.addresses["native"], float(json.loads(server.http("/metadata"))["valid_ms"])
        loads = [asyncio.run(run(address, pictures, robots, seconds, None, longest)) for robots in ROBOTS]
        hertz = round(OVERLOAD * loads[-1].actions_per_s / ROBOTS[-1], 3)
        overload = asyncio.run(run(address, pictures, ROBOTS[-1], seconds, hertz, longest))
        loads.append(asyncio.run(run(address, pictures, ROBOTS[-1], seconds, None, longest)))
    capacity = (loads[-1].actions_per_s + loads[-2].actions_per_s) / 2
    slowest = min(robot.actions_per_s for robot in overload.robots)
    wrong = sum(load.crossed + load.stale + load.unanswered for load in (*loads, overload))
    return FairnessResult(
        capacity_per_s=capacity,
        loads=loads,
        overload=overload,
        note=note,
        targets=[
            Target("Jain's index, least of the loads", min(load.jain for load in loads), "at least", JAIN),
            Target("Jain's index in overload", overload.jain, "at least", JAIN),
            Target("goodput in overload, of the capacity", overload.actions_per_s / capacity, "at least", GOODPUT),
            Target("slowest robot in overload, of its share", slowest * ROBOTS[-1] / capacity, "at least", GOODPUT / 2),
            Target("replies crossed, stale or missing", wrong, "at most", 0),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.fairness", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    parser.add_argument("--seconds", type=float, default=60.0, help="per load")
    parser.add_argument("--note", default="", help="what else the machine does, for the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact, given.seconds, given.note))


if __name__ == "__main__":
    study.run(main)
