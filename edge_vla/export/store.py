"""What one pass of a calibrated export over the layers leaves on disk for the next, so that a killed export finds it.

Reading puts tensors on the device that calibrates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.calibration.action_gradients import PROBES
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES
from edge_vla.export.writer import ArtifactWriter

SHAPES: Final = "shapes"  # beside the tensors of rows: (len(rows), 2) int64, their prompt and dims


@dataclass(frozen=True)
class Kept:
    """Files of one kind, one for each layer."""

    writer: ArtifactWriter
    device: torch.device
    kind: str

    def drop(self, layer: int) -> None:
        self.writer.drop(f"{self.kind}-{layer}")


@dataclass(frozen=True)
class KeptRows(Kept):
    def write(self, layer: int, rows: Sequence[Rows]) -> None:
        shapes = torch.tensor([[same.prompt, same.dims] for same in rows])
        hidden = {str(i): same.hidden for i, same in enumerate(rows)}
        self.writer.keep(f"{self.kind}-{layer}", {SHAPES: shapes, **hidden})

    def read(self, layer: int) -> list[Rows]:
        stored = self.writer.kept(f"{self.kind}-{layer}")
        shapes = stored[SHAPES].tolist()
        return [Rows(stored[str(i)].to(self.device), prompt, dims) for i, (prompt, dims) in enumerate(shapes)]


@dataclass(frozen=True)
class KeptLists(Kept):
    """`count` lists with a tensor for each `Rows`."""

    count: int

    def write(self, layer: int, lists: Sequence[Sequence[Tensor]]) -> None:
        parts = {f"{i}.{j}": part for i, parts in enumerate(lists) for j, part in enumerate(parts)}
        self.writer.keep(f"{self.kind}-{layer}", parts)

    def read(self, layer: int) -> list[list[Tensor]]:
        stored = self.writer.kept(f"{self.kind}-{layer}")
        rows = range(len(stored) // self.count)
        return [[stored[f"{i}.{j}"].to(self.device) for j in rows] for i in range(self.count)]


class CalibrationStore:
    """`inputs` of unquantised layers, `quantised_inputs` of quantised ones, both by the layer that reads them;
    `gradients` at each layer's input, by probe; `row_weights`, by stage."""

    def __init__(self, writer: ArtifactWriter, device: torch.device) -> None:
        self.device = device
        self.inputs = KeptRows(writer, device, "inputs")
        self.quantised_inputs = KeptRows(writer, device, "quantised-inputs")
        self.gradients = KeptLists(writer, device, "gradients", PROBES)
        self.row_weights = KeptLists(writer, device, "row-weights", len(STAGES))
