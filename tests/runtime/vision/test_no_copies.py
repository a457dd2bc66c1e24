"""From pixels to the prefill without the host: on a device that has no memory at all, and by recorded pointers."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import edge_vla
from edge_vla.artifact import TOKENIZER, VISION, Artifact
from edge_vla.errors import BackendError
from edge_vla.export.vision_graph import write_typed_graph
from edge_vla.runtime.gpu.engine import PIECES, GpuEngine, Shape
from edge_vla.runtime.gpu.graph import Direct
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.network import RowVision
from edge_vla.runtime.policy import Policy
from edge_vla.runtime.vision.graphs import TypedGraph
from edge_vla.runtime.vision.onnx import CPU, open_session
from edge_vla.runtime.vision.onnx_device import BoundOnnxVision
from edge_vla.runtime.vision.precision import Arithmetic
from edge_vla.runtime.vision.tensorrt.engine import TensorRTVision
from tests.runtime.gpu.engines import Counted, engine, pixels, policy

HOST = torch.device("cpu")
META = torch.device("meta")
DIMS = 7
STREAM = 4711


class Devices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, by device, the tensors that operators make or write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: Counter[str] = Counter()
        self.copies: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.made[value.device.type] += 1
        if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.clone):
            self.copies.append(tuple(out.shape))
        return out


@dataclass
class RecordedContext:
    """An IExecutionContext of our own: keeps the calls, and computes what an engine would between the two addresses."""

    compute: Callable[[Tensor], Tensor] | None
    calls: list[tuple[str, object]] = field(default_factory=list)
    addresses: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    starts: bool = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        self.calls.append(("shape", shape))
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.calls.append((name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("run", stream))
        if self.compute is not None:
            read = memory(self.addresses["pixel_values"], int(np.prod(self.shape)), ctypes.c_float)
            rows = self.compute(torch.from_numpy(np.ctypeslib.as_array(read).reshape(self.shape)))[0]
            bits = rows.bfloat16().contiguous().view(torch.int16).numpy()
            memory(self.addresses["image_rows"], bits.size, ctypes.c_int16)[:] = bits.ravel().tolist()
        return self.starts


def memory(address: int, count: int, kind: Any) -> Any:
    return (kind * count).from_address(address)


def with_rows(directory: Path, vision: RowVision, record: Counted, device: torch.device = HOST) -> Policy:
    artifact = Artifact(directory)
    made = from_artifact(artifact, torch.bfloat16, device, "reference", record=record, rows=("fake", vision))
    return Policy(made, artifact.manifest.config, artifact.text(TOKENIZER))


def rows_shape(directory: Path) -> tuple[int, int]:
    spec = Artifact(directory).manifest.config.spec
    return spec.patches, spec.decoder.width


def test_an_engine_reads_pixels_and_writes_rows_where_they_lie(tiny_artifacts: Mapping[int, Path]) -> None:
    plain, record = policy(tiny_artifacts[16]), Counted()
    context = RecordedContext(engine(plain).vision)
    vision = TensorRTVision(context, rows_shape(tiny_artifacts[16]), HOST, 0, lambda: STREAM)
    made = with_rows(tiny_artifacts[16], vision, record)
    for index in range(3):
        prompt = made.prompter("pick up the cup")
        got, wanted = (engine(one).decide(prompt, pixels(one, index), DIMS) for one in (made, plain))
        assert got.tokens == wanted.tokens
        assert got.margins == wanted.margins
        buffers = engine(made)._buffers
        assert buffers is not None
        assert context.addresses == {
            "pixel_values": buffers.pixels.data_ptr(),
            "image_rows": buffers.rows.data_ptr() + buffers.rows[0].nbytes,  # behind beginning-of-sequence
        }
    assert {call for call in context.calls if call[0] == "run"} == {("run", STREAM)}
    # Inside the graph: recorded with it, and run by every replay.
    assert record.recorded == 1
    assert sum(call[0] == "run" for call in context.calls) == record.recorded + record.replayed
    assert made.network.chosen["vision"] == "fake"


def test_onnx_runtime_is_bound_to_pointers_before_the_graph(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    """A real session on host memory, bound as on CUDA: the graph lies elsewhere than the weights."""
    pytest.importorskip("onnxruntime")
    artifact = Artifact(tiny_artifacts[16])
    spec = artifact.manifest.config.spec
    write_typed_graph(spec, artifact.directory / VISION, tmp_path / "vision.fp16.onnx", Arithmetic.FP16)
    graph = TypedGraph(tmp_path / "vision.fp16.onnx", artifact.directory / VISION)
    session = open_session(graph, CPU, {}, "onnx-cuda")
    vision, record = BoundOnnxVision(session, rows_shape(artifact.directory), HOST, 0), Counted()
    made = with_rows(artifact.directory, vision, record)
    prompt = made.prompter("pick up the cup")
    decisions = [engine(made).decide(prompt, pixels(made, index), DIMS) for index in (0, 1, 0)]
    assert decisions[0] == decisions[2] != decisions[1]
    values = torch.from_numpy(pixels(made, 0))[None]
    (exact,) = session.run(None, {"pixel_values": values.numpy()})
    buffers = engine(made)._buffers
    assert buffers is not None
    assert torch.equal(buffers.image_rows, torch.from_numpy(exact)[0].bfloat16())
    assert torch.equal(vision(values), torch.from_numpy(exact))
    wanted = edge_vla.load(artifact.directory, "cpu", check=False).network.vision(values).float()
    assert (vision(values) - wanted).norm() < 0.02 * wanted.norm()
    assert (record.recorded, record.replayed) == (1, 3)


@pytest.fixture(scope="module")
def deviceless(tiny_artifacts: Mapping[int, Path]) -> GpuEngine:
    """The whole engine on a device without memory: an operator that reads a number on the host fails there."""
    return from_artifact(Artifact(tiny_artifacts[16]), torch.bfloat16, META, "reference", record=Direct())


@pytest.mark.parametrize("piece", PIECES)
def test_no_tensor_on_the_host_from_pixels_to_the_last_pass(deviceless: GpuEngine, piece: Any) -> None:
    shape = Shape(16, DIMS)
    with torch.inference_mode():
        deviceless._fit(shape)
        with Devices() as devices:
            deviceless._do(piece, shape)
    assert set(devices.made) == {"meta"}
    assert devices.made["meta"] > 20


def test_a_tensorrt_vision_adds_no_tensor_at_all(deviceless: GpuEngine, tiny_artifacts: Mapping[int, Path]) -> None:
    context = RecordedContext(None)
    made = from_artifact(
        Artifact(tiny_artifacts[16]),
        torch.bfloat16,
        META,
        "reference",
        record=Direct(),
        rows=("fake", TensorRTVision(context, rows_shape(tiny_artifacts[16]), META, 0, lambda: STREAM)),
    )
    shape, counts = Shape(16, DIMS), list[int]()
    for one in (made, deviceless):
        with torch.inference_mode():
            one._fit(shape)
            with Devices() as devices:
                one._do("vision", shape)
        assert set(devices.made) <= {"meta"}
        counts.append(len(devices.copies))
    assert counts[0] == 0  # the kernels' own vision copies its embeddings into the rows, on the device
    assert counts[1] >= 1
    assert [name for name, _ in context.calls] == ["shape", "pixel_values", "image_rows", "run"]


@pytest.mark.parametrize(("vision", "copies"), [("torch", 1), ("onnx", 1)])
def test_the_cpu_path_copies_embeddings_once(tiny_artifacts: Mapping[int, Path], vision: str, copies: int) -> None:
    """Into the rows, where the prefill reads them; one more than an engine that writes there itself."""
    if vision == "onnx":
        pytest.importorskip("onnxruntime")
    made = edge_vla.load(tiny_artifacts[16], "cpu", vision, check=False)
    prompt, seen = made.prompter("pick up the cup"), pixels(made, 0)
    made.engine.decide(prompt, seen, DIMS)  # buffers
    spec = made.config.spec
    with torch.inference_mode(), Devices() as devices:
        made.engine.decide(prompt, seen, DIMS)
    embeddings = spec.patches * spec.decoder.width
    whole = [shape for shape in devices.copies if shape[-2:] == (spec.patches, spec.decoder.width)]
    assert len(whole) == copies, (embeddings, devices.copies)


def test_what_does_not_start_or_fit_is_an_error(tiny_artifacts: Mapping[int, Path]) -> None:
    patches, width = rows_shape(tiny_artifacts[16])
    spec = Artifact(tiny_artifacts[16]).manifest.config.spec
    values = torch.zeros(1, 6, spec.image_size, spec.image_size)
    rows = torch.zeros(patches, width, dtype=torch.bfloat16)
    vision = TensorRTVision(RecordedContext(None, starts=False), (patches, width), HOST, 0, lambda: STREAM)
    with pytest.raises(BackendError, match="did not start"):
        vision.write(values, rows)
    for wrong in (rows.float(), rows.T, rows[:1]):
        with pytest.raises(AssertionError):
            vision.write(values, wrong)
