"""The demo policy from nothing: `python -m benchmarks.demo_policy.reproduce --runs runs`.

Runs the stages of the recipe below one after the other, packs what they learnt, measures it on the seeds that the
shipped policy was measured on, and says how far apart the two are. Started again, it continues where it stood.
The shipped weights are not touched. Knows the recipe and the order; `train`, `ship` and `evaluate` do the work.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from benchmarks.demo_policy.train import STAGES
from edge_vla.bench.provenance import environment
from edge_vla.errors import EdgeVLAError, FrameError, ResourceError
from edge_vla.files import write_whole

LOG: Final = logging.getLogger("benchmarks.demo_policy.reproduce")


@dataclass(frozen=True, slots=True)
class Part:
    """A stage, the one whose weights it begins with, and the step of its schedule to stop at."""

    stage: str
    source: str | None = None
    until: int | None = None

    @property
    def steps(self) -> int:
        return self.until or STAGES[self.stage].steps


RECIPE: Final = (
    Part("see"),
    Part("look", "see"),
    Part("act", "look", until=981),
    Part("finish", "act", until=852),
    Part("adapt", "finish"),
)
# A step allocates and frees the same few hundred megabytes: kept on the heap in large pages it runs faster.
QUICK: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
}
TOLERANCE: Final = 0.03  # of a rate: what the shipped figures should be reproduced to
SHIPPED: Final = Path("benchmarks/results")


def command(module: str, *words: object) -> None:
    """One of the demo's own commands in a process of its own, which reads QUICK when it starts."""
    said = [sys.executable, "-m", f"edge_vla.demo.{module}", *map(str, words)]
    LOG.info("%s", " ".join(said[1:]))
    if code := subprocess.run(said, env={**QUICK, **os.environ}, check=False).returncode:
        raise ResourceError(f"{' '.join(said[1:])} ended with {code}: see above; the same command continues")


def trained(runs: Path, threads: int) -> dict[str, float]:
    """Every stage of the recipe; seconds of each, over all the times that this command was started."""
    clock = runs / "seconds.json"
    seconds: dict[str, float] = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}
    for part in RECIPE:
        words: list[object] = ["--stage", part.stage, "--run", runs / part.stage, "--threads", threads]
        words += [] if part.source is None else ["--from", runs / part.source]
        words += [] if part.until is None else ["--until", part.until]
        began = time.perf_counter()
        try:
            command("train", *words)
        finally:
            seconds[part.stage] = round(seconds.get(part.stage, 0.0) + time.perf_counter() - began, 1)
            write_whole(clock, json.dumps(seconds) + "\n")
    return seconds


def measured(runs: Path, threads: int) -> list[Path]:
    """The weights as they would ship, and their figures in both worlds."""
    base, adapter = runs / "policy" / "base", runs / "policy" / "adapter"
    command("ship", "--run", runs / "finish", "--out", base)
    command("ship", "--run", runs / "adapt", "--base", base, "--adapter", "--out", adapter)
    results = [runs / f"demo-reproduction-world{number}.json" for number in (1, 2)]
    for number, out in enumerate(results, start=1):
        if not out.exists():
            weights = ["--base", base, "--adapter", adapter]
            command("evaluate", *weights, "--world", number, "--threads", threads, "--out", out)
    return results


def compare(shipped: Sequence[Path], reproduced: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Trial -> success rate of both, their difference, and whether that is within TOLERANCE."""
    was, now = _trials(shipped), _trials(reproduced)
    if was.keys() != now.keys():
        raise FrameError(f"the results hold different trials: {sorted(was)} and {sorted(now)}")
    rows = {}
    for name, before in was.items():
        difference = round(now[name]["success"] - before["success"], 4)
        rows[name] = {
            "shipped": before["success"],
            "reproduced": now[name]["success"],
            "difference": difference,
            "within": abs(difference) <= TOLERANCE,
            "shipped 95%": before["success 95%"],
            "reproduced 95%": now[name]["success 95%"],
            "reproduced wrong object": now[name]["wrong object"],
        }
    return rows


def _trials(results: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    trials: dict[str, Mapping[str, Any]] = {}
    for path in results:
        try:
            trials |= json.loads(path.read_text(encoding="utf-8"))["closed loop"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FrameError(f"{path} is no result of benchmarks.demo_policy.evaluate: {error}") from error
    return trials


def _leave_it_to_the_stage(_signal: int, _frame: FrameType | None) -> None:
    """Ctrl-C reaches the stage as well, which saves and ends; to end first would kill it in its save."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.reproduce", description=__doc__)
    parser.add_argument("--runs", required=True, type=Path, help="folder of all that is made; 400 MB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shipped", type=Path, default=SHIPPED, help="folder of the shipped policy's results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shipped = [arguments.shipped / f"demo-policy-world{number}.json" for number in (1, 2)]
    _trials(shipped)  # missing ones are found now and not after an hour
    arguments.runs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, _leave_it_to_the_stage)
    seconds = trained(arguments.runs, arguments.threads)
    rows = compare(shipped, measured(arguments.runs, arguments.threads))
    stages = {p.stage: {"pictures": p.steps * STAGES[p.stage].batch, "seconds": seconds[p.stage]} for p in RECIPE}
    result = {"version": 1, "kind": "demo reproduction", **environment(), "stages": stages, "trials": rows}
    write_whole(arguments.runs / "demo-reproduction.json", json.dumps(result, indent=1) + "\n")
    for name, row in rows.items():
        LOG.info("%-28s shipped %.3f, reproduced %.3f, %+.3f", name, *list(row.values())[:3])


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
