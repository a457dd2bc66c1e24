"""What `edge-vla act` shows: a panel on a terminal, plain lines elsewhere, and a file with every turn."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edge_vla.errors import EdgeVLAError, ResourceError
from edge_vla.robot.ticks import Percentiles, Summary, Tally, Tick
from edge_vla.robot.units import Declaration
from edge_vla.terminal import say

EVERY_S: Final = 5.0  # a line, where there is no terminal
REFRESH_S: Final = 0.24
SHOWN: Final = 500  # of the newest times, for the panel's percentiles


class Log:
    """A JSON object a line. A disk that is full ends the log, never the robot."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ResourceError(f"--log {path}: {error.strerror}") from error
        self._lock, self._path, self._broken = threading.Lock(), path, False

    def write(self, kind: str, fields: Mapping[str, object]) -> None:
        with self._lock:
            if self._broken:
                return
            try:
                self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
            except OSError as error:
                self._broken = True
                say("warning", "yellow", f"--log {self._path} ends here: {error.strerror}")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._broken = True
            with contextlib.suppress(OSError):  # a full disk, once more
                self._file.close()


class Unread(Console):
    """Standard error, which nobody may read any more: that ends the screen, never the robot.

    rich would raise SystemExit, in the gate's thread too, and send standard output nowhere: the robot's commands.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Screen:
    """Told by the loop; draws at most four times a second. `title` names policy, camera and robot."""

    def __init__(
        self, robot: Declaration, title: str, tally: Tally, log: Log | None, console: Console | None = None
    ) -> None:
        self._robot, self._title, self._tally, self._log = robot, title, tally, log
        self._console = console = console or Unread(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._began = self._drawn = time.monotonic()
        self._why, self._lock = "", threading.Lock()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Screen:
        self._began = self._drawn = time.monotonic()
        if self._log is not None:
            wall = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            start = {"title": self._title, "wall": wall, "monotonic": self._began, "rate": 1e3 / self._robot.period_ms}
            self._log.write("start", start)
        with self._shown():
            if self._live is None:
                self._console.print(self._title)
            else:
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._shown():
            if self._live is not None:
                self._live.stop()

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """A terminal that is gone, or a full disk under a file, is no reason to stop the robot either."""
        try:
            yield
        except OSError:
            self._console.quiet = True

    def on_tick(self, tick: Tick) -> None:
        if self._log is not None:
            self._log.write("tick", dataclasses.asdict(tick))
        if not tick.missed and self._why:
            self._why = ""
            self._say("moving again")
        now = time.monotonic()
        if now - self._drawn < (EVERY_S if self._live is None else REFRESH_S):
            return
        self._drawn = now
        with self._shown():
            if self._live is None:
                self._console.print(self._line(now - self._began))
                return
            self._live.update(self.panel(now - self._began), refresh=True)

    def on_lapse(self, reason: str, detail: str) -> None:
        """From any thread."""
        self._why = detail
        if self._log is not None:
            at_s = round(time.monotonic() - self._began, 6)
            self._log.write("lapse", {"at_s": at_s, "reason": reason, "detail": detail})
        self._say(f"held: {detail}")

    def on_end(self, why: str, error: EdgeVLAError | None, summary: Summary) -> None:
        if self._log is not None:
            reason = {"over": why, "error": None if error is None else str(error)}
            self._log.write("end", reason | dataclasses.asdict(summary))

    def _say(self, text: str) -> None:
        with self._lock, self._shown():
            self._console.print(f"{time.monotonic() - self._began:7.1f} s  {text}")

    def _line(self, seconds: float) -> str:
        tally = self._tally
        return (
            f"{seconds:7.1f} s  {tally.recent_rate(seconds):.2f} Hz  action {_ms(recent(tally.action_ms))}  "
            f"age {_ms(recent(tally.age_ms))}  acted {tally.acted}  missed {counted(tally.missed)}  "
            f"clamped {tally.clamped}"
        )

    def panel(self, seconds: float) -> Panel:
        tally, robot = self._tally, self._robot
        rows = Table.grid(padding=(0, 2))
        rows.add_row("rate", f"{tally.recent_rate(seconds):.2f} of {1e3 / robot.period_ms:g} Hz")
        rows.add_row("action", f"{_ms(recent(tally.action_ms))}, of it the policy {_ms(recent(tally.policy_ms))}")
        rows.add_row("age", f"{_ms(recent(tally.age_ms))}, at most {1e3 * robot.max_age_s:.0f} ms")
        rows.add_row("turns", f"{tally.acted} acted on in {seconds:.0f} s, missed {counted(tally.missed)}")
        rows.add_row("clamped", f"{tally.clamped} {_clamps(tally.clamps, robot)}")
        if tally.last is not None and tally.last.sent is not None:
            rows.add_row("sent", values(tally.last.sent, robot))
        state = Text(f"held: {self._why}", "red") if self._why else Text("moving", "green")
        return Panel(Group(rows, state), title=self._title, title_align="left")


def recent(times: deque[float]) -> Percentiles:
    """Of the newest."""
    return Percentiles.of(islice(reversed(times), SHOWN))


def shown(summary: Summary, robot: Declaration) -> str:
    """The end of a run, a line for each thing."""
    lines = [
        f"{summary.seconds:.1f} s, {summary.ticks} turns: {summary.acted} acted on, missed {counted(summary.missed)}",
        f"rate     {summary.rate:.2f} of {1e3 / robot.period_ms:g} Hz",
        f"action   {_ms(summary.action_ms)}, of it the policy {_ms(summary.policy_ms)}",
        f"age      {_ms(summary.age_ms)} when the robot had the action",
        f"held     {counted(summary.lapses)}",
        f"clamped  {summary.clamped} actions {_clamps(summary.clamps, robot)}",
    ]
    return "\n".join(lines)


def values(numbers: tuple[float, ...], robot: Declaration) -> str:
    return "  ".join(f"{number:+.4g} {unit}" for number, unit in zip(numbers, robot.robot.units, strict=True))


def counted(counts: Mapping[str, int]) -> str:
    """`5: late 3, camera frozen 2`, the most first."""
    if not counts:
        return "0"
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{sum(counts.values())}: " + ", ".join(f"{name} {count}" for name, count in ordered)


def _clamps(clamps: Mapping[str, int], robot: Declaration) -> str:
    if not clamps:
        return ""
    named: dict[str, int] = {}
    for key, count in clamps.items():
        axis, _, cause = key.partition(" ")
        named[f"axis {axis} ({robot.robot.units[int(axis)]}) {cause}"] = count
    return "(" + counted(named).partition(": ")[2] + ")"


def _ms(times: Percentiles) -> str:
    if times.p50 is None or times.p99 is None:
        return "–"
    return f"p50 {times.p50:.0f} ms p99 {times.p99:.0f} ms"
