"""Typed vision graphs of an artifact: where they lie and what identifies them.

A 16-bit graph points into the artifact's own `vision.safetensors`; the int8 graph has its own weights beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.artifact import VISION, Artifact
from edge_vla.errors import BackendError
from edge_vla.files import sha256_of
from edge_vla.runtime.vision.precision import INT8_DATA, Precision

INPUT: Final = "pixel_values"  # (batch, 3 x towers, H, W) float32
OUTPUT: Final = "image_embeddings"  # (batch, patches, decoder width) float32
ROWS: Final = "image_rows"  # the same in the decoder's type, as an engine ends


@dataclass(frozen=True)
class TypedGraph:
    """A graph, its weights' file, and the SHA-256 of that file where a manifest has it."""

    path: Path
    data: Path
    sha256: str | None = None

    @property
    def there(self) -> bool:
        return self.path.is_file() and self.data.is_file()

    @property
    def identity(self) -> str:
        """Reads the graph, and the weights where no manifest has their hash: asked for plans alone."""
        return hashlib.sha256(f"{sha256_of(self.path)} {self.sha256 or sha256_of(self.data)}".encode()).hexdigest()


def graph_in(folder: Path, artifact: Artifact, precision: Precision) -> TypedGraph:
    """Of the files in `folder`, whether they exist or not."""
    path = folder / precision.graph
    if precision is Precision.INT8:
        return TypedGraph(path, folder / INT8_DATA)
    return TypedGraph(path, artifact.directory / VISION, artifact.manifest.files[VISION].sha256)


def find_graph(folder: Path, artifact: Artifact, precision: Precision) -> TypedGraph:
    """The graph of this precision in the artifact's device cache; BackendError with the command that makes it."""
    graph = graph_in(folder, artifact, precision)
    if not graph.there:
        raise BackendError(
            f"no {precision.value} graph of {artifact.directory} on this device: "
            f"{build_command(artifact, precision)} --graph-only"
        )
    return graph


def first_graph(folder: Path, precisions: Sequence[Precision]) -> Precision:
    """The first of `precisions` that has a graph in `folder`, else the first."""
    return next((one for one in precisions if (folder / one.graph).is_file()), precisions[0])


def build_command(artifact: Artifact, precision: Precision) -> str:
    frames = " --frames DIR" if precision is Precision.INT8 else ""
    return f"edge-vla build-engine {artifact.directory} --precision {precision.value}{frames}"
