"""The sides of a result in one list: reference, floors, candidates and peers, each under the same few names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Result = Mapping[str, Any]
Role = Literal["reference", "floor", "candidate", "peer"]

REFERENCE: Final = "reference"
BACK_TO_BACK: Final = "back to back"
SLOTS: Final = 8  # colours that a style sheet has for sides


@dataclass(frozen=True)
class Side:
    """`slot` is a colour; the reference has 0 and floors have None."""

    name: str
    role: Role
    slot: int | None
    agreement: Result | None = None
    latency: Mapping[str, Result] = field(default_factory=dict)
    memory: Result | None = None
    disk_bytes: int | None = None
    closed_loop: Result | None = None
    layer_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> Result | None:
        """Latency back to back, else in whatever mode was measured first."""
        return self.latency.get(BACK_TO_BACK) or next(iter(self.latency.values()), None)


def sides(result: Result) -> list[Side]:
    """The reference first, then floors, candidates, and peers that ran."""
    measured = result.get("reference_measured") or {}
    found = [
        Side(
            REFERENCE,
            "reference",
            0,
            latency=measured.get("latency") or {},
            memory=measured.get("memory"),
            kernels=measured.get("kernels") or {},
        )
    ]
    found += [Side(name, "floor", None, agreement=floor) for name, floor in result["floors"].items()]
    candidates = result["candidates"]
    for slot, candidate in enumerate(candidates, start=1):
        found.append(
            Side(
                candidate["name"],
                "candidate",
                1 + (slot - 1) % (SLOTS - 1),
                agreement=candidate.get("agreement"),
                latency=candidate.get("latency") or {},
                memory=candidate.get("memory"),
                disk_bytes=candidate["artifact"]["disk_bytes"],
                closed_loop=candidate.get("closed_loop"),
                layer_errors=candidate["artifact"].get("layer_errors") or {},
                kernels=candidate.get("kernels") or {},
            )
        )
    for slot, peer in enumerate((peer for peer in result["peers"] if peer["ran"]), start=len(candidates) + 1):
        latency = peer.get("latency")
        found.append(
            Side(
                peer["name"],
                "peer",
                1 + (slot - 1) % (SLOTS - 1),
                agreement=peer.get("agreement"),
                latency={latency["mode"]: latency} if latency else {},
                memory=peer.get("memory"),
                kernels=peer.get("kernels") or {},
            )
        )
    return found


def failures(result: Result) -> list[str]:
    """Candidates that could not be measured to their end, and why."""
    return [f"{row['name']} failed: {row['failed']}" for row in result["candidates"] if row.get("failed")]


def judged(result: Result) -> list[Side]:
    """Sides with an agreement: floors first, so that a candidate is read beside them."""
    return [side for side in sides(result) if side.agreement]


def timed(result: Result) -> list[Side]:
    return [side for side in sides(result) if side.headline]


def shown(side: Side) -> str:
    """A floor is the reference itself, changed harmlessly: its name says so."""
    return f"floor: {side.name}" if side.role == "floor" else side.name


def dims(result: Result) -> list[str]:
    return next((list(side.agreement["dims"]) for side in judged(result) if side.agreement), [])
