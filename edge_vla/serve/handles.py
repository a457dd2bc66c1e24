"""What a fleet asks of its replicas and of where they run. Knows neither Ray nor a wire format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge_vla.serve.host import HostOptions
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Metadata, Reply
from edge_vla.serve.replica import Asked, Facts, Failed, Pulse, Refused


class LostError(Exception):
    """A replica's process is gone, or cannot be reached."""


class Handle(Protocol):
    """A replica in another process. Everything raises LostError once that is gone."""

    async def start(self, directory: str, choices: Choices) -> Facts | Failed: ...
    async def act(self, asked: Asked) -> Reply | Refused: ...
    async def pulse(self) -> Pulse: ...
    async def drain(self, seconds: float) -> None: ...
    def cancel(self, number: int) -> None: ...
    def reset(self, robot: str) -> None: ...
    def leave(self, robot: str, number: int) -> None: ...
    def kill(self) -> None: ...


class Cluster(Protocol):
    """Where replicas run."""

    def open(self) -> int:
        """How many replicas there will be. EdgeVLAError where they do not fit."""
        ...

    def replica(self, options: HostOptions) -> Handle:
        """A new one; it may wait for a place."""
        ...


@dataclass(frozen=True)
class Fleeted:
    """What a fleet serves. `service_s`: what an action takes on one replica."""

    metadata: Metadata
    key: str
    bits: int
    service_s: float
    replicas: int
