"""The contract between the build side and the run side: an artifact directory. The format is export/FORMAT.md."""

from edge_vla.artifact.manifest import (
    EMBEDDINGS,
    EVIDENCE,
    GRAPH,
    HEAD,
    MANIFEST,
    TOKENIZER,
    VISION,
    Calibration,
    GoldenFrame,
    GoldenSteps,
    Linear,
    Manifest,
    RecordedRecipe,
    Source,
    VisionCheck,
    layer_file,
)
from edge_vla.artifact.reader import NORMS, Artifact, meant
from edge_vla.artifact.tensors import VISION_SCALES, dequantise_vision, map_matrix, pack_vision, unpack_linear

__all__ = [
    "EMBEDDINGS",
    "EVIDENCE",
    "GRAPH",
    "HEAD",
    "MANIFEST",
    "NORMS",
    "TOKENIZER",
    "VISION",
    "VISION_SCALES",
    "Artifact",
    "Calibration",
    "GoldenFrame",
    "GoldenSteps",
    "Linear",
    "Manifest",
    "RecordedRecipe",
    "Source",
    "VisionCheck",
    "dequantise_vision",
    "layer_file",
    "map_matrix",
    "meant",
    "pack_vision",
    "unpack_linear",
]
