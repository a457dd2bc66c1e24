"""What an export tells whoever watches it. The command line draws it; a library caller need not."""

from __future__ import annotations

from typing import Protocol

from edge_vla.eta import Costs


class Progress(Protocol):
    def plan(self, costs: Costs) -> None:
        """Before the first stage: what is to come. Stages are known by the part of their name before `, resumed`."""
        ...

    def stage(self, name: str, steps: int) -> None:
        """A stage of `steps` equal steps begins."""
        ...

    def step(self, detail: str) -> None:
        """One step of the current stage is done; `detail` is what it measured."""
        ...


class Silent:
    def plan(self, costs: Costs) -> None:
        pass

    def stage(self, name: str, steps: int) -> None:
        pass

    def step(self, detail: str) -> None:
        pass
