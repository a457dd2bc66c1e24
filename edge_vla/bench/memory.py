"""How much memory a process and its children hold, watched from a process of its own (`watcher.py`).

    python -m edge_vla.bench.memory --out RESULT.json      what watching costs the one who is watched

Bytes throughout. Knows nothing of what the watched process does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_vla.bench.memory_watcher import PERIOD_S, PROC
from edge_vla.errors import BackendError, EdgeVLAError, UsageError
from edge_vla.files import PACKAGE, write_whole


class Poller:
    """Watches `pid` from when the block is entered until `stop`, or the block's end, whichever is first."""

    def __init__(self, pid: int, period_s: float = PERIOD_S) -> None:
        if not (PROC / "self" / "statm").exists():
            raise BackendError("memory is read from /proc, which this system lacks: measure on Linux")
        root = str(PACKAGE.parent)
        inherited = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge_vla.bench.memory_watcher", str(pid), "--period", str(period_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root])},
        )
        self._result: dict[str, Any] | None = None
        self._answer()  # it has taken its first sample

    def mark(self, name: str) -> dict[str, Any]:
        """Bytes now, and the peak since the mark before (or the start): call it when a phase is over."""
        return self._ask(f"mark {name}")

    def stop(self) -> dict[str, Any]:
        """All that was seen. The same again when asked again."""
        if self._result is None:
            self._result = self._ask("stop")
            self.close()
        return self._result

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            self._process.wait(timeout=5)  # its input has ended, so it ends
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Poller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, words: str) -> dict[str, Any]:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(words + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        try:
            line = self._process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            self.close()
            raise BackendError(f"the memory watcher stopped (exit {self._process.returncode})")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            self.close()
            raise UsageError(reply["error"])
        return reply


def summary(
    polled: Mapping[str, Any],
    weights: Mapping[str, int],
    cuda: Mapping[str, Any] | None = None,
    loaded: str = "loaded",
    steady: str = "steady",
) -> dict[str, Any]:
    """MEMORY of the result document. `cuda`: what the watched process says of its own torch allocator."""
    marks = polled["marks"]
    seen = {**(polled["cuda"] or {}), **(cuda or {})}
    return {
        "weights": dict(weights),
        "load_peak_bytes": marks[loaded]["peak_bytes"] if loaded in marks else None,
        "steady_bytes": marks[steady]["bytes"] if steady in marks else None,
        "peak_bytes": max(polled["peak_bytes"], polled["kernel_peak_bytes"]),
        "pss_peak_bytes": polled["pss_peak_bytes"],
        "cuda": seen or None,
        "system": dict(polled["system"]),
        "samples": polled["samples"],
        "period_ms": polled["period_ms"],
        "series": polled["series"],
        "watcher": dict(polled["watcher"]),
    }


def poller_cost(rounds: int = 8, queries: int = 20, ballast_mb: int = 256) -> dict[str, Any]:
    """p50 of fixed work watched over p50 unwatched, in interleaved blocks; above 1, watching slows it.

    `count` only computes; `allocate` faults in fresh pages, which contends for the lock that reading PSS takes.
    """
    from edge_vla.bench.latency import blocks, ratio

    ballast = bytearray(os.urandom(1 << 20) * ballast_mb)
    work: dict[str, Callable[[], object]] = {
        "count": lambda: sum(range(200_000)),
        "allocate": _fresh_pages,
    }
    times: dict[str, dict[str, list[list[float]]]] = {name: {"alone": [], "watched": []} for name in work}
    shares = []
    for side in blocks(["alone", "watched"], rounds):
        poller = Poller(os.getpid()) if side == "watched" else None
        time.sleep(0.2)
        for name, once in work.items():
            times[name][side].append([_seconds(once) for _ in range(queries)])
        if poller:
            shares.append(poller.stop()["watcher"]["cpu_share"])
    return {
        "rounds": rounds,
        "queries": queries,
        "resident_bytes": len(ballast),
        "period_ms": PERIOD_S * 1e3,
        "watcher_cpu_share": statistics.median(shares),
        "slowdown": {name: ratio(sides["alone"], sides["watched"]) for name, sides in times.items()},
        "p50_ms": {
            name: {side: statistics.median(chain.from_iterable(runs)) * 1e3 for side, runs in both.items()}
            for name, both in times.items()
        },
    }


def _seconds(once: Callable[[], object]) -> float:
    started = time.perf_counter()
    once()
    return time.perf_counter() - started


def _fresh_pages(size: int = 16 << 20) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for at in range(0, size, mmap.PAGESIZE):
            pages[at] = 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.bench.memory", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    measured = poller_cost(given.rounds)
    # Only now: this loads torch, which the watched work should not carry.
    from edge_vla.bench.provenance import environment

    result = {"version": 1, "kind": "watcher", "environment": environment(), **measured}
    write_whole(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
