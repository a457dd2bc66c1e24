"""The demo policy trained again from nothing: `python -m benchmarks.demo_policy.reproduce --runs runs`.

Runs the stages of the recipe below in order, packages the weights, evaluates them on the seeds that the shipped policy
was evaluated on, and compares the two. Started again, it continues where it stood. Leaves the shipped weights alone.
"""

import argparse
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from benchmarks import study
from benchmarks.demo_policy.results import (
    ClosedLoopRates,
    ConditionComparison,
    PolicyEvaluation,
    ReproductionResult,
    StageCost,
)
from benchmarks.demo_policy.stages import STAGES
from benchmarks.result_files import read_result
from edge_vla.errors import FrameError, ResourceError
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
FAST_ALLOCATOR: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
}
TOLERANCE: Final = 0.03  # of a success rate


def command(module: str, *arguments: object) -> None:
    """Run `python -m benchmarks.demo_policy.MODULE` in a process of its own, with FAST_ALLOCATOR."""
    words = [sys.executable, "-m", f"benchmarks.demo_policy.{module}", *map(str, arguments)]
    LOG.info("%s", " ".join(words[1:]))
    code = subprocess.run(words, env={**FAST_ALLOCATOR, **study.child_environment()}, check=False).returncode
    if code:
        raise ResourceError(f"{' '.join(words[1:])} ended with exit code {code}: see above; the same command continues")


def train_all(runs: Path, threads: int, run: Callable[..., None] = command) -> dict[str, float]:
    """Every stage of the recipe; seconds of each, summed over all starts. `run` runs a module of this package."""
    clock = runs / "seconds.json"
    seconds: dict[str, float] = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}
    for part in RECIPE:
        arguments: list[object] = ["--stage", part.stage, "--run", runs / part.stage, "--threads", threads]
        arguments += [] if part.source is None else ["--from", runs / part.source]
        arguments += [] if part.until is None else ["--until", part.until]
        began = time.perf_counter()
        try:
            run("train", *arguments)
        finally:
            seconds[part.stage] = round(seconds.get(part.stage, 0.0) + time.perf_counter() - began, 1)
            write_whole(clock, json.dumps(seconds) + "\n")
    return seconds


def evaluate_all(runs: Path, threads: int, run: Callable[..., None] = command) -> list[Path]:
    """Package the weights as they would ship, and evaluate them in both worlds; returns the result files."""
    base, adapter = runs / "policy" / "base", runs / "policy" / "adapter"
    run("ship", "--run", runs / "finish", "--out", base)
    run("ship", "--run", runs / "adapt", "--base", base, "--adapter", "--out", adapter)
    results = [runs / f"demo-reproduction-world{number}.json" for number in (1, 2)]
    for number, out in enumerate(results, start=1):
        if not out.exists():
            weights = ["--base", base, "--adapter", adapter]
            run("evaluate", *weights, "--world", number, "--threads", threads, "--out", out)
    return results


def compare(shipped: Sequence[Path], reproduced: Sequence[Path]) -> dict[str, ConditionComparison]:
    """Each condition of the shipped policy's results beside the same condition of the reproduced one's."""
    before, after = _conditions(shipped), _conditions(reproduced)
    if before.keys() != after.keys():
        raise FrameError(f"the results hold different conditions: {sorted(before)} and {sorted(after)}")
    return {
        name: ConditionComparison(
            shipped=was.success,
            shipped_interval=was.success_interval,
            reproduced=after[name].success,
            reproduced_interval=after[name].success_interval,
            reproduced_wrong_object=after[name].wrong_object,
            tolerance=TOLERANCE,
        )
        for name, was in before.items()
    }


def _conditions(results: Sequence[Path]) -> Mapping[str, ClosedLoopRates]:
    conditions: dict[str, ClosedLoopRates] = {}
    for path in results:
        body = read_result(path).body
        if not isinstance(body, PolicyEvaluation):
            raise FrameError(f"{path} is no result of benchmarks.demo_policy.evaluate: make one with that command")
        conditions |= body.closed_loop
    return conditions


def _leave_it_to_the_stage(_signal: int, _frame: FrameType | None) -> None:
    """Ctrl-C reaches the child as well, which saves and ends; ending first would kill it while it saves."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.reproduce", description=__doc__)
    parser.add_argument("--runs", required=True, type=Path, help="directory for everything that is made; 400 MB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--shipped", type=Path, default=study.ROOT / "benchmarks" / "results", help="directory of the shipped results"
    )
    given = parser.parse_args()
    shipped = [given.shipped / f"demo-policy-world{number}.json" for number in (1, 2)]
    _conditions(shipped)  # fails now rather than after an hour
    given.runs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, _leave_it_to_the_stage)
    seconds = train_all(given.runs, given.threads)
    conditions = compare(shipped, evaluate_all(given.runs, given.threads))
    stages = {p.stage: StageCost(p.steps * STAGES[p.stage].batch, seconds[p.stage]) for p in RECIPE}
    study.write_result(given.runs / "demo-reproduction.json", ReproductionResult(stages, conditions))
    for name, row in conditions.items():
        LOG.info("%-28s shipped %.3f, reproduced %.3f, %+.3f", name, row.shipped, row.reproduced, row.difference)


if __name__ == "__main__":
    study.run(main)
