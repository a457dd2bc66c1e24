"""What `edge-vla` commands cost as a user runs them: wall time and peak memory, each in its own process.

    python -m benchmarks.commands --out RESULT.json -- --help --then export random:openvla-7b --out DIR

Each command is repeated `--repeat` times and must succeed; its last line of output is kept. Where it says how much time
is left in all, what that made of the whole is set over the time it really took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from edge_vla.errors import BackendError, EdgeVLAError
from edge_vla.files import write_whole

THEN: Final = "--then"
LEFT: Final = re.compile(r"(\d+) (s|min) left in all")


def measure(arguments: Sequence[str], repeat: int = 1) -> dict[str, Any]:
    """Run `edge-vla ARGUMENTS`; raises BackendError with its last words if it fails."""
    seconds, cpu, peaks, last = [], [], [], ""
    foretold: list[tuple[float, float]] = []
    for _ in range(repeat):
        with tempfile.TemporaryFile("w+") as output:
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-m", "edge_vla.cli", *arguments], stdout=output, stderr=subprocess.PIPE, text=True
            )
            assert child.stderr is not None
            with child.stderr:
                foretold, error = _heard(child.stderr, started)
            _, status, usage = os.wait4(child.pid, 0)
            seconds.append(time.perf_counter() - started)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise BackendError(f"edge-vla {' '.join(arguments)}: {error}")
            cpu.append(usage.ru_utime + usage.ru_stime)
            peaks.append(usage.ru_maxrss * 1024)
            output.seek(0)
            last = (output.read().strip().splitlines() or [""])[-1]
    return {
        "arguments": list(arguments),
        "runs": repeat,
        "seconds": round(statistics.median(seconds), 3),
        "fastest_seconds": round(min(seconds), 3),
        "cpu_seconds": round(statistics.median(cpu), 3),
        "peak_bytes": max(peaks),
        "last_line": last,
        "foretold": [{"at_s": round(at, 1), "over_actual": round(whole / seconds[-1], 3)} for at, whole in foretold],
    }


def _heard(errors: IO[str], started: float) -> tuple[list[tuple[float, float]], str]:
    """Each foretelling of the whole time, as (seconds after the start, whole seconds), and the last line."""
    foretold, last = [], ""
    for line in errors:
        at, last = time.perf_counter() - started, line.strip() or last
        if found := LEFT.search(line):
            foretold.append((at, at + int(found[1]) * {"s": 1, "min": 60}[found[2]]))
    return foretold, last


def split(arguments: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for argument in [*arguments, THEN]:
        if argument == THEN:
            yield command
            command = []
        else:
            command.append(argument)


def sizes(commands: Sequence[Sequence[str]]) -> dict[str, int]:
    """Bytes of each artifact that a command was told to make."""
    made = [Path(command[command.index("--out") + 1]) for command in commands if "--out" in command]
    return {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in made}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("commands", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    commands = list(split(given.commands[1:] if given.commands[:1] == ["--"] else given.commands))
    measured = [measure(command, given.repeat) for command in commands]
    # Only now: a child's peak counts what its parent held when it forked, and this import loads torch.
    from edge_vla.bench.provenance import environment, without_directory

    for command in measured:
        command["arguments"] = list(map(without_directory, command["arguments"]))
    result = {
        "version": 1,
        "kind": "commands",
        "environment": environment(),
        "commands": measured,
        "disk_bytes": sizes(commands),
    }
    write_whole(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
