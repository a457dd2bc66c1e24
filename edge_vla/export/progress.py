"""What an export tells whoever watches it. The command line draws it; a library caller need not."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def stage(self, name: str, steps: int) -> None:
        """A stage of `steps` equal steps begins."""
        ...

    def step(self, detail: str) -> None:
        """One step of the current stage is done; `detail` is what it measured."""
        ...


class Silent:
    def stage(self, name: str, steps: int) -> None:
        pass

    def step(self, detail: str) -> None:
        pass
