"""When work in stages will be over: how their costs compare is known beforehand, how long one takes the clock tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Costs = Mapping[str, tuple[int, float]]  # stage -> its steps, and what each costs; the unit does not matter


class Forecast:
    """Told of every stage and step as it comes. A stage that was not planned counts for nothing until it begins."""

    def __init__(self, costs: Costs, now: Callable[[], float]) -> None:
        self.ahead, self.now = dict(costs), now
        self.spent = self.seconds = 0.0  # on steps that were planned
        self.steps, self.done, self.cost, self.began = 0, 0, 0.0, now()

    def stage(self, name: str, steps: int) -> None:
        self._settle()
        _, self.cost = self.ahead.pop(name.partition(", resumed")[0], (0, 0.0))
        self.steps, self.done, self.began = steps, 0, self.now()

    def step(self) -> None:
        self.done += 1

    def left(self) -> float | None:
        """Seconds; None before the first step of all."""
        elapsed = self.now() - self.began
        spent, seconds = self.spent + self.done * self.cost, self.seconds + elapsed * bool(self.cost and self.done)
        if not spent:
            return None
        rate = seconds / spent
        each = elapsed / self.done if self.done else self.cost * rate
        return each * (self.steps - self.done) + rate * sum(steps * cost for steps, cost in self.ahead.values())

    def _settle(self) -> None:
        if self.cost and self.done:
            self.spent += self.done * self.cost
            self.seconds += self.now() - self.began
