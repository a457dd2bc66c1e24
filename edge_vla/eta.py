"""The remaining time of work in stages: their costs are known beforehand, the clock tells the rate.

Costs are of two kinds: work, whose rate a machine and a size decide, and seconds that everybody pays, such as tracing a
graph. Rates differ from stage to stage, and a first step is often slow, so the remaining time lies between two bounds.
It is told when the upper is at most 3.5 times the lower, as their geometric mean: then it is right to within two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HONEST: Final = 3.5  # upper bound over lower
UNSEEN: Final = 3.0  # another stage's rate over the only one that is known, or under it; also a step's over the first's
SPREAD: Final = 1.5  # how far a rate may lie beyond those of two stages or more
FIXED: Final = (1 / 1.5, 2.0)  # fixed seconds on another machine
ALIKE: Final = 4.0  # a step of so many times the work of those done says nothing of its own
WEIGHTY: Final = 0.2  # of a step's time: a fixed part that hides the rate of the rest
SOON: Final = 2.0  # seconds below which the bounds do not matter


@dataclass(frozen=True)
class Step:
    """`work` in seconds on some machine, of which only ratios matter; `fixed` seconds on any."""

    work: float
    fixed: float = 0.0


Costs = Mapping[str, Sequence[Step]]  # stage -> its steps


@dataclass(frozen=True)
class Bounds:
    """Seconds, or seconds for one of work."""

    low: float
    high: float

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.low + other.low, self.high + other.high)


class Stage:
    """A stage under way: its planned steps, and what those that are done took."""

    def __init__(self, steps: Sequence[Step], began: float) -> None:
        self.left, self.last = list(steps), began
        self.done: list[tuple[Step, float]] = []

    def step(self, now: float) -> None:
        if self.left:
            self.done.append((self.left.pop(0), now - self.last))
        self.last = now

    def rate(self) -> Bounds | None:
        """Seconds for one of work, with and without the first step, which may have been slow; None before it."""
        measured = self._measured()
        if not measured:
            return None
        whole = _rate(measured)
        if len(measured) == 1:
            return Bounds(whole / UNSEEN, whole)
        later = _rate(measured[1:])
        return Bounds(min(whole, later), max(whole, later))

    def speaks_for(self, step: Step) -> bool:
        return step.work <= ALIKE * max((work for work, _ in self._measured()), default=0.0)

    def _measured(self) -> list[tuple[float, float]]:
        """Work and seconds of the steps that are done, without those whose time is mostly the fixed part's."""
        plain = [(step, seconds) for step, seconds in self.done if step.work and step.fixed < WEIGHTY * seconds]
        return [(step.work, seconds - step.fixed) for step, seconds in plain]


class Eta:
    """Follows stages and steps as they come. In a stage that was not planned nothing is told."""

    def __init__(self, costs: Costs, now: Callable[[], float]) -> None:
        self.ahead, self.now = {name: tuple(steps) for name, steps in costs.items()}, now
        self.rates: list[Bounds] = []  # of finished stages
        self.stage_now, self.unplanned = Stage((), now()), False

    def stage(self, name: str, steps: int) -> None:
        """A stage begins with so many steps still to do, the last of those that were planned."""
        if rate := self.stage_now.rate():
            alone = len(self.stage_now.done) == 1  # then it was no slow first step of more
            self.rates.append(Bounds(rate.high, rate.high) if alone else rate)
        planned = self.ahead.pop(name, ())
        self.unplanned = steps > len(planned)
        self.stage_now = Stage(planned[len(planned) - min(steps, len(planned)) :], self.now())

    def step(self) -> None:
        self.stage_now.step(self.now())

    def remaining(self) -> float | None:
        """Seconds until all stages are done; None where they can't be told to within two."""
        bounds = self.bounds()
        if bounds is None:
            return None
        if bounds.high <= SOON:
            return bounds.high
        return math.sqrt(bounds.low * bounds.high) if bounds.high <= HONEST * bounds.low else None

    def bounds(self) -> Bounds | None:
        """The least and the most that is left; None before anything was measured."""
        stage, others = self.stage_now, self._others()
        if others is None or self.unplanned:
            return None
        own = stage.rate()
        current = [_seconds(step, own if own and stage.speaks_for(step) else others) for step in stage.left]
        if current:  # the first is under way
            spent = self.now() - stage.last
            low, high = current[0].low - spent, current[0].high - spent
            current[0] = Bounds(max(low, 0.0), high if high > 0 else spent)  # late: perhaps as long again
        later = [_seconds(step, others) for steps in tuple(self.ahead.values()) for step in steps]
        return sum([*current, *later], Bounds(0.0, 0.0))

    def _others(self) -> Bounds | None:
        """The rate of a stage that has not been measured."""
        own = self.stage_now.rate()
        known = [*self.rates, *([own] if own else [])]
        if not known:
            return None
        margin = UNSEEN if len(known) == 1 else SPREAD
        return Bounds(min(one.low for one in known) / margin, max(one.high for one in known) * margin)


def in_words(seconds: float) -> str:
    """As exact as it is: "about 40 s left", "about 12 min left"."""
    if seconds < 5:
        return "a few seconds left"
    if seconds < 100:
        return f"about {5 * round(seconds / 5)} s left"
    if seconds < 6000:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def _rate(measured: Sequence[tuple[float, float]]) -> float:
    return sum(seconds for _, seconds in measured) / sum(work for work, _ in measured)


def _seconds(step: Step, rate: Bounds) -> Bounds:
    return Bounds(step.fixed * FIXED[0] + step.work * rate.low, step.fixed * FIXED[1] + step.work * rate.high)
