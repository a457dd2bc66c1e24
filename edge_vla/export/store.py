"""What one pass of a calibrated export over the layers leaves on disk for the next: a file for each kind and layer.

A killed export finds them again. Reading puts tensors on the device that calibrates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.calibration.action_gradients import PROBES, Gradients
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES
from edge_vla.export.writer import ArtifactWriter

SHAPES: Final = "shapes"  # beside the tensors of rows: (len(rows), 2) int64, their prompt and dims


@dataclass(frozen=True)
class CalibrationStore:
    writer: ArtifactWriter
    device: torch.device

    def write_inputs(self, layer: int, rows: Sequence[Rows]) -> None:
        """What unquantised layers give `layer` to read; for the first, the embedded frames."""
        self._write_rows(f"inputs-{layer}", rows)

    def inputs(self, layer: int) -> list[Rows]:
        return self._rows(f"inputs-{layer}")

    def drop_inputs(self, layer: int) -> None:
        self.writer.drop(f"inputs-{layer}")

    def write_quantised_inputs(self, layer: int, rows: Sequence[Rows]) -> None:
        """What quantised layers give `layer` to read."""
        self._write_rows(f"quantised-inputs-{layer}", rows)

    def quantised_inputs(self, layer: int) -> list[Rows]:
        return self._rows(f"quantised-inputs-{layer}") if layer else self.inputs(layer)

    def write_gradients(self, layer: int, gradients: Gradients) -> None:
        """Those at the input of `layer`, which is the output of the layer before it."""
        self._write_nested(f"gradients-{layer}", gradients)

    def gradients(self, layer: int) -> Gradients:
        return self._nested(f"gradients-{layer}", PROBES)

    def drop_gradients(self, layer: int) -> None:
        self.writer.drop(f"gradients-{layer}")

    def write_row_weights(self, layer: int, weights: Sequence[Sequence[Tensor]]) -> None:
        """For each stage of `layer`, the weight of each row."""
        self._write_nested(f"row-weights-{layer}", weights)

    def row_weights(self, layer: int) -> list[list[Tensor]]:
        return self._nested(f"row-weights-{layer}", len(STAGES))

    def drop_layer(self, layer: int) -> None:
        """All that quantising `layer` has read."""
        for kind in ("inputs", "quantised-inputs", "row-weights"):
            self.writer.drop(f"{kind}-{layer}")

    def _write_rows(self, name: str, rows: Sequence[Rows]) -> None:
        shapes = torch.tensor([[same.prompt, same.dims] for same in rows])
        self.writer.keep(name, {SHAPES: shapes, **{str(i): same.hidden for i, same in enumerate(rows)}})

    def _rows(self, name: str) -> list[Rows]:
        stored = self.writer.kept(name)
        shapes = stored[SHAPES].tolist()
        return [Rows(stored[str(i)].to(self.device), prompt, dims) for i, (prompt, dims) in enumerate(shapes)]

    def _write_nested(self, name: str, lists: Sequence[Sequence[Tensor]]) -> None:
        self.writer.keep(name, {f"{i}.{j}": part for i, inner in enumerate(lists) for j, part in enumerate(inner)})

    def _nested(self, name: str, count: int) -> list[list[Tensor]]:
        stored = self.writer.kept(name)
        inner = range(len(stored) // count)
        return [[stored[f"{i}.{j}"].to(self.device) for j in inner] for i in range(count)]
