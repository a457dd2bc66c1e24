"""An artifact's vision as a typed graph in the device cache: made where the engine is built, from the artifact's bytes.

16-bit graphs follow from the weights. int8 is calibrated on frames.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from edge_vla.artifact import VISION, Artifact
from edge_vla.data import Frame
from edge_vla.errors import ArtifactError, BackendError, UsageError
from edge_vla.export.vision_graph import write_typed_graph
from edge_vla.export.vision_int8 import choose, write_int8
from edge_vla.export.vision_int8.choose import OnStep
from edge_vla.files import FileRecord
from edge_vla.openvla import preprocess
from edge_vla.runtime.vision import shapes
from edge_vla.runtime.vision.graphs import TypedGraph, graph_in
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.towers import torch_vision

FRAMES: Final = 128  # to calibrate on, spread over those given
LEAST: Final = 32  # with a few the grids fit those frames and no others: the error was above the largest value's


def device_graph(
    artifact: Artifact,
    precision: Precision,
    folder: Path,
    frames: Sequence[Frame] = (),
    *,
    fresh: bool = False,
    device: torch.device | None = None,
    on_step: OnStep | None = None,
) -> TypedGraph:
    """The graph in `folder`. A 16-bit one is always written again: it costs less than to know that a kept one is this
    artifact's. An int8 one is kept unless `fresh`; `device` is where it calibrates.

    Raises ArtifactError for weights that are not the manifest's, UsageError for int8 with few frames, BackendError
    without the onnx package, ResourceError where the disk is full.
    """
    present = graph_in(folder, artifact, precision)
    if present.there and precision is Precision.INT8 and not fresh:
        return present
    weights = artifact.directory / VISION
    if not artifact.manifest.files[VISION].matches(weights):  # before each build: the plan's name has the manifest's
        found = FileRecord.of(weights).sha256
        raise ArtifactError(f"{weights}: sha256 {found[:12]}…, the manifest says another: copy or export it again")
    if importlib.util.find_spec("onnx") is None:
        raise BackendError("writing a vision graph needs onnx: pip install onnx")
    if precision is Precision.INT8 and len(frames) < LEAST:
        raise UsageError(f"int8 vision calibrates on {LEAST} frames or more, got {len(frames)}: --frames DIR")
    spec = artifact.manifest.config.spec
    if precision is not Precision.INT8:
        write_typed_graph(spec, weights, present.path, precision.arithmetic)
        return present
    tensors = artifact.tensors(VISION, shapes(spec))
    network = torch_vision(spec, tensors, torch.float32, device or torch.device("cpu"))
    some = frames[:: max(1, len(frames) // FRAMES)][:FRAMES]
    values = (preprocess(frame.open(), artifact.manifest.config.image) for frame in some)
    images = [torch.from_numpy(np.ascontiguousarray(one))[None] for one in values]
    choice = choose(network, images, on_step)
    if on_step is not None:
        on_step(choice.summary)
    write_int8(spec, tensors, choice, folder)
    return graph_in(folder, artifact, precision)
