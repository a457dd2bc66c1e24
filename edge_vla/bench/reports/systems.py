"""The systems of a result in one list, each with the same fields: reference, floors, candidates, peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Final, Literal

from edge_vla.bench.reports.charts import COLOURS, Colour
from edge_vla.bench.result import Agreement, ClosedLoop, Latency, Performance, Rate, Result

Role = Literal["reference", "floor", "candidate", "peer"]

REFERENCE: Final = "reference"


@dataclass(frozen=True)
class SystemResult:
    name: str
    role: Role
    colour: Colour
    agreement: Agreement | None
    performance: Performance
    disk_bytes: int | None = None
    closed_loop: ClosedLoop | None = None
    rates: Mapping[str, Rate] | None = None  # of the first regime, by kind of task

    @property
    def label(self) -> str:
        return f"floor: {self.name}" if self.role == "floor" else self.name

    @property
    def latency(self) -> Latency | None:
        """Back to back, else of the first mode that was measured."""
        return self.performance.back_to_back or next(iter(self.performance.latency.values()), None)

    @property
    def peak_bytes(self) -> int | None:
        return self.performance.memory.peak_bytes if self.performance.memory else None


def systems(result: Result) -> list[SystemResult]:
    """The reference first, then floors, candidates, and the peers that were measured."""
    reference, colours = result.reference, cycle(range(1, COLOURS))
    found = [SystemResult(REFERENCE, "reference", 0, None, reference.performance, rates=reference.rates)]
    found += [SystemResult(name, "floor", None, floor, Performance()) for name, floor in result.floors.items()]
    for row in result.candidates:
        loop, size = row.closed_loop, row.artifact.disk_bytes
        rates = loop.regimes[0].candidate if loop and loop.regimes else None
        found.append(
            SystemResult(row.name, "candidate", next(colours), row.agreement, row.performance, size, loop, rates)
        )
    for peer in result.peers:
        if peer.agreement is not None or peer.performance.latency:
            found.append(SystemResult(peer.name, "peer", next(colours), peer.agreement, peer.performance))
    return found


def compared(result: Result) -> list[tuple[SystemResult, Agreement]]:
    """Systems with an agreement: floors first, so that a candidate is read beside them."""
    return [(system, system.agreement) for system in systems(result) if system.agreement is not None]


def timed(result: Result) -> list[tuple[SystemResult, Latency]]:
    return [(system, system.latency) for system in systems(result) if system.latency is not None]


def failures(result: Result) -> list[str]:
    """What could not be measured to the end, and why. A peer's reason stands in the table of peers."""
    rows = [(REFERENCE, result.reference.failed), *((row.name, row.failed) for row in result.candidates)]
    return [f"{name} failed: {why}" for name, why in rows if why is not None]
