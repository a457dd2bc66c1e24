"""The remaining time of work in stages: their relative costs are known beforehand, the clock tells the rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Costs = Mapping[str, tuple[int, float]]  # stage -> its steps and the cost of each; the unit does not matter


class Eta:
    """Follows stages and steps as they come. A stage that was not planned counts for nothing until it begins."""

    def __init__(self, costs: Costs, now: Callable[[], float]) -> None:
        self.ahead, self.now = dict(costs), now
        self.spent = self.seconds = 0.0  # cost and time of the planned steps of finished stages
        self.left, self.done, self.cost, self.began = 0, 0, 0.0, now()

    def stage(self, name: str, steps: int) -> None:
        """A stage begins with so many steps still to do."""
        if self.cost and self.done:
            self.spent += self.done * self.cost
            self.seconds += self.now() - self.began
        _, self.cost = self.ahead.pop(name, (0, 0.0))
        self.left, self.done, self.began = steps, 0, self.now()

    def step(self) -> None:
        self.left, self.done = self.left - 1, self.done + 1

    def remaining(self) -> float | None:
        """Seconds until all stages are done; None before the first planned step is."""
        elapsed = self.now() - self.began
        spent, seconds = self.spent + self.done * self.cost, self.seconds + elapsed * bool(self.cost and self.done)
        if not spent:
            return None
        rate = seconds / spent
        each = elapsed / self.done if self.done else self.cost * rate
        return each * self.left + rate * sum(steps * cost for steps, cost in self.ahead.values())
