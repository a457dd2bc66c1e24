"""Did a change make actions slower? `python -m benchmarks.checkouts ARTIFACT --before DIR --out FILE`. Ten minutes.

Runs `edge-vla bench` from two checkouts in turns (A B B A), each in processes of its own that import that checkout, and
compares the medians of the artifact's actions pair by pair: what drifts on the machine meets both. The artifact is one
and the same. Knows commands and their results; knows nothing of what changed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from benchmarks import study
from edge_vla.bench import result_file
from edge_vla.bench.latency import ratio
from edge_vla.bench.result import SpeedRatio
from edge_vla.bench.schedule import blocks
from edge_vla.demo import BASE
from edge_vla.errors import BackendError

BEFORE, AFTER = "before", "after"
ENTRY: Final = "import sys; from edge_vla.cli import main; main(sys.argv[1:])"


@dataclass(frozen=True, kw_only=True)
class CheckoutsResult:
    """`speedup` is before over after: above 1, the change made actions faster. Medians of each run, milliseconds."""

    KIND: ClassVar[str] = "checkouts"
    VERSION: ClassVar[int] = 1

    before_commit: str | None
    after_commit: str | None
    rounds: int
    queries: int
    speedup: SpeedRatio
    before_p50_ms: list[float]
    after_p50_ms: list[float]
    kernels: dict[str, str]


@dataclass(frozen=True)
class Run:
    p50_ms: float
    queries: int
    commit: str | None
    kernels: dict[str, str]


def bench(checkout: Path, artifact: Path, reference: str, profile: str, out: Path) -> Run:
    """`edge-vla bench` of one checkout, speed alone. Raises BackendError with its last words where it fails."""
    words = [str(artifact.resolve()), "--reference", reference, "--no-agreement", "--no-time-reference"]
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "bench", *words, "--profile", profile, "--out", str(out)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise BackendError(f"edge-vla bench of {checkout.name} failed (exit {done.returncode}), it printed: {last}")
    result = result_file.read(out)
    performance = result.candidates[0].performance
    latency = performance.back_to_back
    if latency is None:
        raise BackendError(f"edge-vla bench of {checkout.name} timed nothing: use another --profile than {profile}")
    return Run(latency.p50_ms, latency.queries, result.provenance.commit, performance.kernels)


def compare(before: Path, artifact: Path, reference: str, profile: str, rounds: int) -> CheckoutsResult:
    runs: dict[str, list[Run]] = {BEFORE: [], AFTER: []}
    places = {BEFORE: before, AFTER: study.ROOT}
    with tempfile.TemporaryDirectory(prefix="edge-vla-checkouts-") as scratch:
        for turn, name in enumerate(blocks([BEFORE, AFTER], rounds)):
            runs[name].append(bench(places[name], artifact, reference, profile, Path(scratch) / str(turn)))
    medians = {name: [[run.p50_ms] for run in done] for name, done in runs.items()}
    first = {name: done[0] for name, done in runs.items()}
    return CheckoutsResult(
        before_commit=first[BEFORE].commit,
        after_commit=first[AFTER].commit,
        rounds=rounds,
        queries=first[AFTER].queries,
        speedup=ratio(medians[AFTER], medians[BEFORE]),
        before_p50_ms=[run.p50_ms for run in runs[BEFORE]],
        after_p50_ms=[run.p50_ms for run in runs[AFTER]],
        kernels=first[AFTER].kernels,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkouts", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--reference", default=str(BASE))
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--rounds", type=int, default=4, help="each runs both checkouts twice")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = compare(given.before, given.artifact, given.reference, given.profile, given.rounds)
    study.write_result(given.out, found)


if __name__ == "__main__":
    study.run(main)
