"""Why each linear of a mixed-precision export has the bits it has: written by the export, read by the bench.

A KL cost is what storing one linear in one format is predicted to add to the divergence from the reference: the mean
over action tokens of KL(reference || candidate), in nats. Knows shapes and versions; nothing of how costs are measured.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla import typed_json

VERSION: Final = 3
FILE: Final = "evidence/sensitivity.json"  # in the artifact, outside its hashes
RENAMED_SINCE_2: Final = {
    "damage": "kl_cost",
    "departures_kept": "residual_kept",
    "form": "format",
    "measured": "measured_kl_cost",
    "predicted_kl_same": "predicted_kl_uniform",
}


@dataclass(frozen=True)
class Choice:
    """One way to store a linear, or towers and projector."""

    format: str  # like `int4 g128`; of towers and projector `8 bits`
    bytes: int
    kl_cost: float  # as the solver used it: measured, then shrunk towards the common curve
    measured_kl_cost: float | None = None  # before shrinkage; None where nothing is shrunk


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The formats that something could have had, fewest bits first, and the `format` that it got."""

    format: str
    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> Choice:
        return next(choice for choice in self.choices if choice.format == self.format)


@dataclass(frozen=True, kw_only=True)
class LinearChoices(Choices):
    """One linear's."""

    layer: int
    name: str
    weights: int


@dataclass(frozen=True, kw_only=True)
class VisionChoices(Choices):
    """Those of towers and projector, where the budget chose their bits too."""

    bits: int


@dataclass(frozen=True)
class ParetoPoint:
    """The least summed KL cost that so many bytes buy."""

    bytes: int
    kl_cost: float


@dataclass(frozen=True)
class SensitivityReport:
    """One budget and how it was spent. Bytes are those on disk unless the name says otherwise."""

    limit_bytes: int
    linears_bytes: int
    linears_bytes_on_device: int  # int2 and int3 run as int4
    bits_per_weight: float
    predicted_kl: float
    predicted_kl_mixed: float  # of the best plan
    predicted_kl_uniform: float | None  # of the best plan with one format for all linears; None where none fits
    residual_kept: float  # share of the departures from the common curve that shrinkage kept
    vision: VisionChoices | None
    linears: tuple[LinearChoices, ...]
    pareto: tuple[ParetoPoint, ...]
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(raw: object) -> SensitivityReport:
        """Of this version or of version 2; ValueError for anything else."""
        version = raw.get("version") if isinstance(raw, dict) else None
        if version not in (2, VERSION):
            raise ValueError(f"{FILE}: version {version!r}, expected 2 or {VERSION}: export again")
        return typed_json.from_json(SensitivityReport, _from_version_2(raw) if version == 2 else raw)

    @staticmethod
    def read(artifact: Path) -> SensitivityReport | None:
        """That of an artifact's directory; None where it has none or one that cannot be read."""
        try:
            return SensitivityReport.from_json(json.loads((artifact / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None


def _from_version_2(raw: Any) -> Any:
    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(part) for part in value]
        if not isinstance(value, dict):
            return value
        names = RENAMED_SINCE_2 | ({"name": "format", "size": "bytes"} if "damage" in value else {})
        return {names.get(key, key): renamed(part) for key, part in value.items()}

    report = renamed(raw)
    if vision := report.get("vision"):
        vision["format"] = f"{vision['bits']} bits"
    return {**report, "version": VERSION}
