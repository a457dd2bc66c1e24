"""The parent's end of a worker process: one process for each system under test.

A system's memory, threads and imports are its own, and a peer may live in another Python. `worker.py` is the other end.
Knows processes and messages; knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from edge_vla import errors
from edge_vla.bench import messages
from edge_vla.bench.messages import Failure, Loaded, Request, System, Timed
from edge_vla.bench.result import EpisodeRow, StageProfile
from edge_vla.bench.schedule import Warmed
from edge_vla.errors import BackendError, EdgeVLAError, ResourceError, UsageError
from edge_vla.files import PACKAGE

Reply = TypeVar("Reply")


def child_environment() -> dict[str, str]:
    """This process's environment, with this very package importable in another Python."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class WorkerProcess:
    """A running system. Every call waits for its reply; an error in the worker is raised here as what it was."""

    def __init__(self, system: System) -> None:
        self.system = system
        # Its log goes to a file: a pipe that nobody reads would block it.
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [system.python or sys.executable, "-m", "edge_vla.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=child_environment(),
            )
        except OSError as error:
            raise UsageError(f"{system.name}: {system.python} does not start: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, frames: Path, limit: int | None) -> Loaded:
        """Open the policy and the frames, and act once."""
        return self._call(messages.Load(self.system, str(frames), limit), Loaded)

    def predict(self, out: Path, forced: Path | None, floor: str | None = None) -> None:
        """Write predictions on every frame to `out`, teacher-forced along those in `forced` (None: its own)."""
        self._call(messages.Predict(str(out), str(forced) if forced else None, floor), messages.Done)

    def time(self, indices: Sequence[int], period_s: float | None = None) -> Timed:
        """Act on frames by index, back to back or one every `period_s`."""
        return self._call(messages.Time(list(indices), period_s), Timed)

    def warm_up(self, max_s: float) -> Warmed:
        return self._call(messages.WarmUpFor(max_s), Warmed)

    def stage_profile(self, actions: int) -> StageProfile:
        return self._call(messages.ProfileStages(actions), StageProfile)

    def episodes(
        self, environment: str, kind: str, first: int, count: int, delays_ms: Sequence[float] | None = None
    ) -> list[EpisodeRow]:
        """Closed-loop episodes; with `delays_ms` the environment runs on while the policy computes."""
        delays = None if delays_ms is None else list(delays_ms)
        return self._call(messages.RunEpisodes(environment, kind, first, count, delays), messages.Episodes).rows

    def close(self) -> None:
        """End the process: it exits when its input does."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, request: Request, expected: type[Reply]) -> Reply:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(messages.encode(request))
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise self._death()
        reply = messages.decode(line)
        if isinstance(reply, Failure):
            kind = getattr(errors, reply.error, None) if reply.error in errors.__all__ else None
            raise (kind or BackendError)(f"{self.system.name}: {reply.message}")
        assert isinstance(reply, expected), f"expected {expected.__name__}, got {type(reply).__name__}"
        return reply

    def _death(self) -> EdgeVLAError:
        """Why the process has gone, from its exit code and the last line of its log."""
        code = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip() or "its log is empty").splitlines()[-1]
        name = self.system.name
        if code == -signal.SIGKILL:
            return ResourceError(f"{name} was killed: out of memory? Use fewer --bits, fewer systems, or more memory")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        return BackendError(f"{name} stopped ({how}): {last}")
