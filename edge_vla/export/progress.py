"""What an export reports to whoever watches it. The command line draws it; a library caller need not."""

from __future__ import annotations

import warnings
from typing import Protocol

from edge_vla.checkpoint.reading import Reading
from edge_vla.errors import EdgeVLAWarning
from edge_vla.eta import Costs


class Progress(Protocol):
    def opened(self, reading: Reading) -> None:
        """Before anything is written: what was read of the source, what not, and every doubt."""
        ...

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
    """Reports nothing but doubts about the source, as warnings."""

    def opened(self, reading: Reading) -> None:
        for doubt in reading.doubts:
            warnings.warn(doubt, EdgeVLAWarning, 4)

    def plan(self, costs: Costs) -> None:
        pass

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        pass

    def step(self, detail: str) -> None:
        pass
