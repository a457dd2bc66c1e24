"""What an export reports to whoever watches it. The command line draws it; a library caller need not."""

from __future__ import annotations

from typing import Protocol

from edge_vla.eta import Costs


class Progress(Protocol):
    def plan(self, costs: Costs) -> None:
        """Before the first stage: every stage to come, by name, with its steps and the relative cost of each."""
        ...

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        """A stage of equal steps begins; `done` of them were finished by an export that this one resumes."""
        ...

    def step(self, detail: str) -> None:
        """One step of the current stage is done; `detail` is what it measured."""
        ...


class Silent:
    """Reports nothing."""

    def plan(self, costs: Costs) -> None:
        pass

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        pass

    def step(self, detail: str) -> None:
        pass
