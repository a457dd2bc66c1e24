"""Does a server stay as it is? `python -m benchmarks.serve.soak --minutes 10 --out FILE`.

8 robots send ten times a second each, whether or not they were answered. The server's resident memory is read every
second; every reply is compared with what its picture gives in process.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import study
from benchmarks.serve.frames import frames
from benchmarks.serve.load import run
from benchmarks.serve.results import Load, ServeSoakResult
from benchmarks.serve.server import Server, demo_artifact, serving
from benchmarks.study import Target

ROBOTS: Final = 8
HERTZ: Final = 10.0
FRAMES: Final = 64
SAMPLE_S: Final = 1.0
VALID_MS: Final = 300.0  # three periods; given, because by default it follows the speed of a shared machine
WARM_UP: Final = 0.1  # of the samples, which are not fitted
SLOPE_MIB: Final = 1.0  # per ten minutes
SLOPE_S: Final = 600.0
MINUTE: Final = 60  # samples

Sample = tuple[float, float]  # seconds, MiB


def measure(
    artifact: Path, minutes: float, robots: int = ROBOTS, hertz: float = HERTZ, note: str = ""
) -> ServeSoakResult:
    pictures = frames(artifact, FRAMES)
    with serving(artifact, "--valid-for-ms", f"{VALID_MS:g}") as server:
        driving = run(server.addresses["native"], pictures, robots, 60 * minutes, hertz, VALID_MS)
        load, samples = asyncio.run(_watched(server, driving))
    fitted = samples[int(WARM_UP * len(samples)) :]
    slope = SLOPE_S * float(np.polyfit([at for at, _ in fitted], [mib for _, mib in fitted], 1)[0])
    return ServeSoakResult(
        load=load,
        rss_start_mib=round(fitted[0][1], 2),
        rss_end_mib=round(fitted[-1][1], 2),
        rss_slope_mib_per_10_min=round(slope, 3),
        rss_mib_by_minute=[round(mib, 2) for _, mib in samples[MINUTE - 1 :: MINUTE]],
        note=note,
        targets=[
            Target("minutes", minutes, "at least", 10),
            Target("replies crossed", load.crossed, "at most", 0),
            Target("replies stale", load.stale, "at most", 0),
            Target("observations without any reply", load.unanswered, "at most", 0),
            Target("RSS slope, MiB per 10 min", slope, "at most", SLOPE_MIB),
        ],
    )


async def _watched(server: Server, work: Coroutine[Any, Any, Load]) -> tuple[Load, list[Sample]]:
    """What `work` found, and the server's memory while it ran."""
    samples: list[Sample] = []
    working = asyncio.ensure_future(work)
    while not working.done():
        samples.append((time.monotonic(), server.rss_bytes() / 2**20))
        await asyncio.wait({working}, timeout=SAMPLE_S)
    return working.result(), samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.soak", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--robots", type=int, default=ROBOTS)
    parser.add_argument("--hertz", type=float, default=HERTZ, help="of each robot")
    parser.add_argument("--note", default="", help="what else the machine does, for the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact, given.minutes, given.robots, given.hertz, given.note))


if __name__ == "__main__":
    study.run(main)
