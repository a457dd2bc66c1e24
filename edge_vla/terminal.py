"""The terminal: where results and everything else go, a progress bar, and how errors and warnings look."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from edge_vla.errors import EdgeVLAWarning
from edge_vla.eta import Costs, Eta

out: Final = Console(highlight=False, soft_wrap=True, markup=False)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class Bar:
    """A progress bar with rate and time left on a terminal, a line a step elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self.bar = RichProgress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=err,
            disable=not err.is_terminal,
        )
        self.name, self.steps, self.done, self.resumed_at, self.started = "", 0, 0, 0, time.monotonic()
        self.plan({})

    def plan(self, costs: Costs) -> None:
        self.eta = Eta(costs, time.monotonic)

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        self.name, self.steps, self.done, self.resumed_at, self.started = name, steps, done, done, time.monotonic()
        self.eta.stage(name, steps - done)
        resumed = f" (resumed after {done})" if done else ""
        self.task = self.bar.add_task(name + resumed, total=steps, completed=done, detail="")

    def step(self, detail: str) -> None:
        self.done += 1
        self.eta.step()
        whole = self.eta.remaining()
        in_all = "" if whole is None else f", {_minutes(whole)} left in all"
        each = (time.monotonic() - self.started) / (self.done - self.resumed_at)
        self.bar.update(self.task, advance=1, detail=f"{each:.1f} s each{in_all}, {detail}")
        if not err.is_terminal:
            left = each * (self.steps - self.done)
            err.print(f"{self.name} {self.done}/{self.steps}, {each:.1f} s each, {left:.0f} s left{in_all}: {detail}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: Any = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if issubclass(category, EdgeVLAWarning):
        say("warning", "yellow", str(message))
    elif os.environ.get("EDGE_VLA_DEBUG"):
        say(category.__name__, "dim", str(message))


def say(kind: str, colour: str, text: str) -> None:
    err.print(Text.assemble((kind, colour), f": {text}"))


@contextmanager
def export_progress() -> Iterator[Bar]:
    bar = Bar()
    with bar.bar:
        yield bar
