"""The sides of a comparison: who they are, and one process for each.

A side's memory, threads and imports are its own, and a peer may live in another Python. The parent sends one JSON
object a line and reads one back; `station.py` is the other end. Knows nothing of what the answers mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edge_vla import errors
from edge_vla.checkpoint import Arithmetic
from edge_vla.errors import BackendError, EdgeVLAError, ResourceError, UsageError
from edge_vla.files import PACKAGE

QUIT = "quit"


@dataclass(frozen=True)
class Contestant:
    """A policy to be measured: an artifact, a checkpoint, or with `peer` a checkpoint run by another engine."""

    name: str
    path: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    dtype: str = "bf16"
    device: str = "auto"
    vision: str = "auto"
    kernel: str = "auto"
    unnorm_key: str | None = None
    peer: str | None = None
    python: str | None = None  # interpreter of a peer's own environment
    calibration: str | None = None  # folder of frames for a peer that calibrates


class Station:
    """A running side. Every call waits for its answer; an error in the child is raised here as what it was."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        # Its own words go to a file: a pipe that nobody reads would stop it.
        self._words: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        # The same package in a peer's own environment.
        root = str(PACKAGE.parent)
        paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
        try:
            self._process = subprocess.Popen(
                [contestant.python or sys.executable, "-m", "edge_vla.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            raise UsageError(f"{contestant.name}: {contestant.python} does not start: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, frames: Path, limit: int | None) -> dict[str, Any]:
        """Open the policy and the frames. Returns seconds to ready, peak bytes of the load, kernels, weights."""
        return self._call("load", contestant=dataclasses.asdict(self.contestant), frames=str(frames), limit=limit)

    def answer(self, out: Path, forced: Path | None, floor: str | None = None) -> dict[str, Any]:
        """Act on every frame, and predict each token of `forced` (a Side's file; None: its own) into `out`."""
        return self._call("answer", out=str(out), forced=str(forced) if forced else None, floor=floor)

    def time(self, indices: list[int], period_s: float | None = None) -> dict[str, Any]:
        """Act on frames by index, back to back or one every `period_s`. Returns `records`: stages and `total`, ms."""
        return self._call("time", indices=indices, period_s=period_s)

    def warm_up(self, most_s: float) -> dict[str, Any]:
        return self._call("warm_up", most_s=most_s)

    def waterfall(self, actions: int) -> dict[str, Any]:
        """One action's stages, each beside its limit, and its costliest operators: `profile.profile`."""
        return self._call("waterfall", actions=actions)

    def cuda(self) -> dict[str, int] | None:
        """Peaks of its torch allocator in bytes, if it uses a GPU."""
        peaks: dict[str, int] | None = self._call("cuda")["peaks"]
        return peaks

    def episodes(self, table: str, kind: str, first: int, count: int, delays_ms: list[float] | None) -> dict[str, Any]:
        """Closed-loop episodes. Returns `rows`. With `delays_ms` the world goes on while the policy thinks."""
        return self._call("episodes", table=table, kind=kind, first=first, count=count, delays_ms=delays_ms)

    def close(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                self._send({"do": QUIT})
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()

    def __enter__(self) -> Station:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, command: str, **values: Any) -> dict[str, Any]:
        try:
            self._send({"do": command, **values})
            assert self._process.stdout
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise self._death()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            kind = getattr(errors, reply["error"], None) if reply["error"] in errors.__all__ else None
            raise (kind or BackendError)(f"{self.contestant.name}: {reply['message']}")
        return reply

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _death(self) -> EdgeVLAError:
        """What to say of a child that has gone."""
        code = self._process.wait()
        self._words.seek(0)
        words = (self._words.read().strip() or "it said nothing").splitlines()[-1]
        name = self.contestant.name
        if code == -signal.SIGKILL:
            return ResourceError(f"{name} was killed: out of memory? Use fewer --bits, fewer sides, or more memory")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        return BackendError(f"{name} stopped ({how}): {words}")
