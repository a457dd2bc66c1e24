"""The terminal: where results and everything else go, a progress bar, and how errors and warnings look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from edge_vla.errors import EdgeVLAWarning
from edge_vla.eta import Costs, Eta, in_words

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

    from edge_vla.checkpoint.reading import Reading

SHOWN: Final = 3  # files of one kind by name; of more, the first and the last
out: Final = Console(highlight=False, soft_wrap=True, markup=False)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class Bar:
    """On a terminal one line that fits it: spinner, stage, bar, time, what is left where that is known, and the last
    step's detail, cut. Elsewhere a line a step.
    """

    def __init__(self) -> None:
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(*_columns(self._line), console=err, disable=not live(), expand=True)
        self.name, self.steps, self.done, self.resumed_at, self.started = "", 0, 0, 0, time.monotonic()
        self.task: TaskID | None = None
        self.detail = ""
        self.plan({})

    def opened(self, reading: Reading) -> None:
        show_reading(reading, err)

    def plan(self, costs: Costs) -> None:
        self.eta = Eta(costs, time.monotonic)

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        self.name, self.steps, self.done, self.resumed_at, self.started = name, steps, done, done, time.monotonic()
        self.eta.stage(name, steps - done)
        self.detail = f"resumed after {done}" if done else ""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(name, total=steps, completed=done)

    def step(self, detail: str) -> None:
        self.done += 1
        self.eta.step()
        self.detail = detail
        if self.task is not None:
            self.bar.advance(self.task)
        if not live():
            each = (time.monotonic() - self.started) / (self.done - self.resumed_at)
            parts = [f"{self.name} {self.done}/{self.steps}", f"{each:.1f} s each", *self._left()]
            err.print(f"{', '.join(parts)}: {detail}")

    def _left(self) -> list[str]:
        seconds = self.eta.remaining()
        return [] if seconds is None else [in_words(seconds)]

    def _line(self) -> str:
        return ", ".join([*self._left(), *([self.detail] if self.detail else [])])


def _columns(line: Callable[[], str]) -> list[ProgressColumn]:
    """Spinner, stage, bar, steps and time, then `line`, asked for at each refresh and cut where the terminal ends."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:  # noqa: ARG002
            return Text(line(), no_wrap=True, overflow="ellipsis")

    rest = Line(table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    name = TextColumn("{task.description}", table_column=Column(no_wrap=True))
    return [SpinnerColumn(), name, BarColumn(bar_width=8), MofNCompleteColumn(), TimeElapsedColumn(), rest]


def show_reading(reading: Reading, console: Console) -> None:
    """What a source is and what was read of it, a line for each thing; each doubt as a warning."""
    console.print(f"{reading.kind.value} ({reading.sign})")
    for title, uses in (("read", reading.read), ("ignored", reading.ignored)):
        for why in dict.fromkeys(use.why for use in uses):
            names = [use.name for use in uses if use.why == why]
            shown = ", ".join(names) if len(names) <= SHOWN else f"{names[0]} to {names[-1]} ({len(names)} files)"
            console.print(f"{title} {shown}: {why}")
    for name, value in (
        ("merged", ", ".join(reading.merged)),
        ("prompt", reading.prompt),
        ("statistics", reading.statistics),
    ):
        if value:
            console.print(f"{name} {value}")
    for doubt in reading.doubts:
        say("warning", "yellow", doubt)


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
def steps(what: str) -> Iterator[Callable[[str], None]]:
    """Shows the step under way: on a terminal a spinner with its name, elsewhere (a pipe, a log) a line a step."""
    if not live():
        yield lambda step: err.print(f"{what}: {step}")
        return
    with err.status(Text(what)) as status:
        yield lambda step: status.update(Text(f"{what}: {step}", no_wrap=True, overflow="ellipsis"))


def live() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return err.is_terminal and not err.is_dumb_terminal


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C: what is kept and how to go on, in a line; then exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted", "yellow", kept())
        raise SystemExit(130) from None


@contextmanager
def export_progress() -> Iterator[Bar]:
    bar = Bar()
    with bar.bar:
        yield bar
