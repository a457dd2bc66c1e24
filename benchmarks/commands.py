"""What `edge-vla` commands cost as a user runs them: wall time and peak memory, each run in a process of its own.

    python -m benchmarks.commands --out RESULT.json -- --help --then export random:openvla-7b --out DIR

Each command runs `--repeat` times and must succeed; the last line of its output is kept. Where it prints a total time
that it expects, the result compares that with the time it took.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, ClassVar, Final

from benchmarks import study
from edge_vla.errors import BackendError

THEN: Final = "--then"
ETA: Final = re.compile(r"(\d+) (s|min) left in all")


@dataclass(frozen=True)
class EtaError:
    """At `at_s`, the total time that the command expected, over the time that it took."""

    at_s: float
    expected_over_actual: float


@dataclass(frozen=True)
class CommandCost:
    """One `edge-vla` command: medians over its runs."""

    arguments: list[str]
    runs: int
    wall_s: float
    fastest_wall_s: float
    cpu_s: float | None
    peak_bytes: int
    last_line: str
    eta_errors: list[EtaError]  # of the last run


@dataclass(frozen=True)
class CommandsResult:
    """Every command that was asked for, and the artifacts that they wrote."""

    KIND: ClassVar = "commands"
    VERSION: ClassVar = 2

    commands: list[CommandCost]
    disk_bytes: dict[str, int]  # by artifact


def measure(arguments: Sequence[str], repeat: int = 1) -> CommandCost:
    """Run `edge-vla ARGUMENTS`; raises BackendError with its last line on standard error if it fails."""
    wall, cpu, peaks, last = list[float](), list[float](), list[int](), ""
    expected: list[tuple[float, float]] = []
    for _ in range(repeat):
        with tempfile.TemporaryFile("w+") as output:
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-m", "edge_vla.cli", *arguments],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                env=study.child_environment(),
            )
            assert child.stderr is not None, "a pipe was asked for"
            with child.stderr:
                expected, error = _read_progress(child.stderr, started)
            _, status, usage = os.wait4(child.pid, 0)
            wall.append(time.perf_counter() - started)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise BackendError(f"edge-vla {' '.join(arguments)} failed: {error}")
            cpu.append(usage.ru_utime + usage.ru_stime)
            peaks.append(usage.ru_maxrss * 1024)
            output.seek(0)
            last = (output.read().strip().splitlines() or [""])[-1]
    return CommandCost(
        arguments=list(arguments),
        runs=repeat,
        wall_s=round(statistics.median(wall), 3),
        fastest_wall_s=round(min(wall), 3),
        cpu_s=round(statistics.median(cpu), 3),
        peak_bytes=max(peaks),
        last_line=last,
        eta_errors=[EtaError(round(at, 1), round(total / wall[-1], 3)) for at, total in expected],
    )


def _read_progress(errors: IO[str], started: float) -> tuple[list[tuple[float, float]], str]:
    """Every expected total time as (seconds since the start, total seconds), and the last line."""
    expected, last = [], ""
    for line in errors:
        at, last = time.perf_counter() - started, line.strip() or last
        if found := ETA.search(line):
            expected.append((at, at + int(found[1]) * {"s": 1, "min": 60}[found[2]]))
    return expected, last


def split(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The commands between `--then`s."""
    command: list[str] = []
    for argument in [*arguments, THEN]:
        if argument == THEN:
            yield command
            command = []
        else:
            command.append(argument)


def disk_bytes(commands: Sequence[Sequence[str]]) -> dict[str, int]:
    """Bytes under each `--out` that a command had."""
    written = [Path(command[command.index("--out") + 1]) for command in commands if "--out" in command]
    return {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in written}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each command")
    parser.add_argument("commands", nargs=argparse.REMAINDER, help="-- then each command, separated by --then")
    given = parser.parse_args()
    commands = list(split(given.commands[1:] if given.commands[:1] == ["--"] else given.commands))
    measured = [measure(command, given.repeat) for command in commands]
    # Only now: a child's peak counts what its parent held when it forked, and this import loads torch.
    from edge_vla.bench.provenance import without_directory

    measured = [replace(cost, arguments=list(map(without_directory, cost.arguments))) for cost in measured]
    study.write_result(given.out, CommandsResult(measured, disk_bytes(commands)))


if __name__ == "__main__":
    study.run(main)
