"""Towers and projector: one weight file of 16 or 8 bits, and one ONNX graph whose external data is that same file.

The graph is traced without weights, on the meta device; every parameter then becomes a pointer into
`vision.safetensors` and one Cast, or DequantizeLinear, to float32. So the export costs no memory, and torch, ONNX
Runtime and TensorRT read the same bytes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.artifact import GRAPH, VISION, VISION_SCALES, VisionCheck
from edge_vla.checkpoint import TensorSource
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import ArtifactError, BackendError
from edge_vla.export.writer import ArtifactWriter
from edge_vla.files import disk_errors
from edge_vla.quant import Scheme, quantise, sixteen
from edge_vla.runtime.vision.onnx import OnnxVision
from edge_vla.runtime.vision.towers import TorchVision, torch_vision
from edge_vla.spec import PolicySpec

OPSET: Final = 20
MATRIX: Final = 2  # dimensions of a linear's weight; the patch convolution, biases and norms have others
MAX_BATCH: Final = 8
TOLERANCE: Final = 1e-3  # of the largest embedding; float32 summation gives about 1e-6


def export_vision(source: TensorSource, spec: PolicySpec, writer: ArtifactWriter, bits: int = 16) -> None:
    """Write `vision.safetensors` and `vision.onnx`. With 8 bits every matrix is int8, and the rest keeps 16 bits."""
    weights: dict[str, Tensor] = {}
    for name in vision_keys(spec):
        tensor = source.load(name)
        if bits == 8 and tensor.ndim == MATRIX:
            packed = quantise(tensor, Scheme.INT8, None)
            assert packed.scales is not None, "int8 has scales"
            weights |= {name: packed.codes, name + VISION_SCALES: packed.scales}
        else:
            weights[name] = sixteen(tensor)
    path = writer.save(VISION, weights)
    weights.clear()
    write_graph(spec, path, writer.partial / GRAPH)
    writer.adopt(GRAPH)


def require_exporter() -> None:
    """Raise BackendError before any work if the packages that write and check the graph are missing."""
    missing = [
        name for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise BackendError(f"exporting the vision graph needs {', '.join(missing)}: pip install 'edge-vla[onnx]'")


def write_graph(spec: PolicySpec, weights: Path, graph: Path) -> None:
    """Trace the network and point its parameters at `weights`, which must lie beside `graph`."""
    import onnx_ir as ir

    with torch.device("meta"):
        network = TorchVision(spec).eval()
        pixels = torch.empty(2, 3 * len(spec.towers), spec.image_size, spec.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        _quiet_exporter()
        program = torch.onnx.export(
            network,
            (pixels,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["image_embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    model = program.model
    _point_at(model, weights)
    _forget_provenance(model)
    with disk_errors(f"write {graph}"):
        ir.save(model, graph)


def check_graph(
    graph: Path, weights: Mapping[str, Tensor], spec: PolicySpec, pixels: NDArray[np.float32]
) -> VisionCheck:
    """Run the graph in ONNX Runtime and the network in torch, both in float32, on the same pixel values.

    `pixels` is (B, 3 x towers, H, W). ArtifactError for a difference that float32 summation cannot explain.
    """
    cpu = torch.device("cpu")
    with torch.inference_mode():
        expected = torch_vision(spec, weights, torch.float32, cpu)(torch.from_numpy(pixels))
    got = OnnxVision(graph, cpu, fold=False)(torch.from_numpy(pixels))
    difference, magnitude = float((got - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * magnitude:  # also when either is not a number
        raise ArtifactError(
            f"the ONNX graph differs from torch by {difference:.1e} of {magnitude:.1e}, expected at most "
            f"{TOLERANCE * magnitude:.1e}: install the versions of torch and onnxruntime in constraints.txt"
        )
    # Two digits: the last bits depend on how many threads summed.
    return VisionCheck(float(f"{difference:.1e}"), float(f"{magnitude:.1e}"))


def _point_at(model: object, weights: Path) -> None:
    """Replace each parameter by an initializer whose data lies in `weights`, and a node that widens it to float32."""
    import onnx_ir as ir

    assert isinstance(model, ir.Model), "an onnx_ir model"
    kinds = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16, "I8": ir.DataType.INT8}
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    nodes: list[ir.Node] = []
    pointed = set()

    def point(name: str) -> ir.Value:
        begin, end = header[name]["data_offsets"]
        kind, shape = kinds[header[name]["dtype"]], ir.Shape(header[name]["shape"])
        tensor = ir.ExternalTensor(
            weights.name, 8 + length + begin, end - begin, kind, shape=shape, name=name, base_dir=weights.parent
        )
        pointed.add(name)
        return ir.Value(name=name, shape=shape, type=ir.TensorType(kind), const_value=tensor)

    def widened(stored: ir.Value, node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"{stored.name}/float32"
        node.outputs[0].shape, node.outputs[0].type = stored.shape, ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        return node.outputs[0]

    def cast(stored: ir.Value) -> ir.Value:
        return widened(
            stored, ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT}, name=f"cast/{stored.name}")
        )

    for name, value in list(model.graph.initializers.items()):
        if name not in header:
            continue
        stored = point(name)
        if stored.dtype == ir.DataType.INT8:
            scales = point(name + VISION_SCALES)
            inputs = [stored, cast(scales)]
            real = widened(stored, ir.node("DequantizeLinear", inputs, attributes={"axis": 0}, name=f"widen/{name}"))
            model.graph.initializers[scales.name or ""] = scales
        else:
            real = cast(stored)
        value.replace_all_uses_with(real)
        del model.graph.initializers[name]
        model.graph.initializers[name] = stored
    assert pointed == set(header) - {"__metadata__"}, "every stored weight is used by the graph"
    model.graph.insert_before(model.graph[0], nodes)


def _forget_provenance(model: object) -> None:
    """Drop stack traces and versions: they name this machine's files, and hashed files carry no such thing."""
    import onnx_ir as ir

    assert isinstance(model, ir.Model), "an onnx_ir model"
    model.producer_name, model.producer_version = "edge-vla", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _quiet_exporter() -> None:
    # It reports each torchvision operator it cannot find; torchvision is absent on purpose.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
