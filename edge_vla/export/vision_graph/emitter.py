"""ONNX nodes written one by one, in one arithmetic type, over weights that stay in a safetensors file.

Every weight is a pointer into that file, and a Cast or DequantizeLinear behind it where it is stored in another type.
Knows ONNX and bytes. Knows nothing of towers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edge_vla.artifact import VISION_SCALES
from edge_vla.errors import ArtifactError
from edge_vla.files import disk_errors, write_whole
from edge_vla.runtime.gpu.staging import Entry, read_header
from edge_vla.runtime.vision.graphs import INPUT, OUTPUT
from edge_vla.runtime.vision.precision import Arithmetic

if TYPE_CHECKING:
    import onnx

OPSET: Final = 20  # the last that TensorRT 10.3's parser reads
IR_VERSION: Final = 9  # of ONNX 1.15, where opset 20 came
BATCH: Final = "batch"


Attribute = int | float | str | Sequence[int]
Dimension = int | str


class Emitter:
    """A graph under construction; a value is known by its name. `data` lies in the folder that the graph is for."""

    def __init__(self, data: Path, arithmetic: Arithmetic) -> None:
        import onnx

        elements = onnx.TensorProto
        self._stored_as: Mapping[torch.dtype, int] = {
            torch.bfloat16: elements.BFLOAT16,
            torch.float16: elements.FLOAT16,
            torch.float32: elements.FLOAT,
            torch.int8: elements.INT8,
        }
        self.element = {
            Arithmetic.FP32: elements.FLOAT,
            Arithmetic.FP16: elements.FLOAT16,
            Arithmetic.BF16: elements.BFLOAT16,
        }[arithmetic]
        self.data, self.entries = data, read_header(data)
        self._nodes = list[onnx.NodeProto]()
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._known = set[str]()
        self.used = set[str]()

    def op(self, kind: str, inputs: Sequence[str], name: str, /, **attributes: Attribute) -> str:
        """One node with one output, both called `name`."""
        import onnx

        self._nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def cast(self, value: str, name: str, element: int | None = None) -> str:
        return self.op("Cast", [value], name, to=self.element if element is None else element)

    def integers(self, values: Sequence[int], name: str) -> str:
        """Shapes, bounds and axes; the same ones are stored once."""
        return self._add(name, np.asarray(values, dtype=np.int64))

    def number(self, values: float | NDArray[np.float32], name: str) -> str:
        """A constant of the working type, kept in the graph."""
        import onnx

        if name not in self._initializers:
            array = np.asarray(values, dtype=np.float32)
            made = onnx.helper.make_tensor(name, self.element, array.shape, array.ravel().tolist())
            self._initializers[name] = made
        return name

    def zero_point(self, name: str) -> str:
        return self._add(name, np.zeros((), dtype=np.int8))

    def weight(self, name: str, shape: Sequence[int] | None = None, *, axis: int = 0) -> str:
        """A stored tensor in the working type, seen in another `shape` of as many numbers.

        int8 codes are dequantised by their scales, which lie along `axis`.
        """
        entry, ready = self._entry(name), f"{name}/typed"
        if ready in self._known:
            return ready
        self._known.add(ready)
        stored = self._point(name, entry, shape)
        if entry.dtype == torch.int8:
            scales = self.weight(name + VISION_SCALES)
            return self.op("DequantizeLinear", [stored, scales], ready, axis=axis)
        if self._stored_as[entry.dtype] == self.element:
            return self.op("Identity", [stored], ready)
        return self.cast(stored, ready)

    def save(self, graph: Path, pixels: Sequence[Dimension], embeddings: Sequence[Dimension], result: str) -> None:
        """Write the graph: float32 pixel values in, float32 embeddings out. ResourceError where the disk fails."""
        import onnx

        helper, real = onnx.helper, onnx.TensorProto.FLOAT
        self.cast(result, OUTPUT, real)
        if unused := sorted(set(self.entries) - self.used):
            raise ArtifactError(f"{self.data} holds {unused[0]}, which no tower or projector has: export again")
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                "vision",
                [helper.make_tensor_value_info(INPUT, real, list(pixels))],
                [helper.make_tensor_value_info(OUTPUT, real, list(embeddings))],
                list(self._initializers.values()),
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="edge-vla",
            ir_version=IR_VERSION,
        )
        with disk_errors(f"write {graph}"):
            write_whole(graph, model.SerializeToString(deterministic=True))

    def _add(self, name: str, values: NDArray[np.generic]) -> str:
        import onnx

        if name not in self._initializers:
            self._initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise ArtifactError(f"{self.data} lacks {name}: export again")
        return self.entries[name]

    def _point(self, name: str, entry: Entry, shape: Sequence[int] | None) -> str:
        """An initializer whose data is the file's own bytes."""
        import onnx

        self.used.add(name)
        tensor = onnx.TensorProto(
            name=name,
            data_type=self._stored_as[entry.dtype],
            dims=entry.shape if shape is None else shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        pointer = {"location": self.data.name, "offset": entry.begin, "length": entry.end - entry.begin}
        for key, value in pointer.items():
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        return name
