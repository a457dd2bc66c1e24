"""One int4 product as other libraries run it, in a Python of its own: OpenVINO's and ONNX Runtime's.

    python -m benchmarks.cpu.linears '{"n": 11008, "k": 4096, "group": 128, "threads": 1}'

is the child process, which needs numpy and one of openvino, onnxruntime with onnx, and no torch: it makes each system
that its packages allow and answers a line `SYSTEM ROWS` with milliseconds and the relative error. `LinearPeers` is the
parent's end. Weights are random in int4 with a scale for each group; inputs and outputs are float32.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import child
from benchmarks.cpu.child import Child
from edge_vla.errors import BackendError

NEEDS: Final = "openvino, or onnxruntime and onnx: pip install openvino onnxruntime onnx"
OPENVINO, OPENVINO_INT8, ORT = "OpenVINO", "OpenVINO, int8 rows", "ONNX Runtime MatMulNBits"
REPEATS: Final = 5  # of which the fastest counts

Array = NDArray[np.float32]
Product = Callable[[Array], Array]
T = TypeVar("T")


class LinearPeers(Child):
    """A running child process; `systems` are those that its packages allow, by name, with their versions."""

    def __init__(self, python: str, asked: Mapping[str, int]) -> None:
        """BackendError where the child stops."""
        super().__init__(python, "benchmarks.cpu.linears", asked, NEEDS)
        self.systems: dict[str, str] = self.about

    def measure(self, system: str, rows: int) -> tuple[float, float]:
        """Milliseconds of the fastest of REPEATS products, and their error relative to float64."""
        milliseconds, error = self.request([system, rows])
        return milliseconds, error

    def __enter__(self) -> LinearPeers:
        return self


def fastest(product: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds of the fastest of REPEATS after one, and what it gives."""
    got, best = product(), float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        got = product()
        best = min(best, time.perf_counter() - began)
    return best * 1e3, got


def relative_error(got: NDArray[Any], truth: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


class Weight:
    """int4 codes [n, k] of one seed, and their scales [n, k / group]."""

    def __init__(self, n: int, k: int, group: int) -> None:
        generator = np.random.default_rng(0)
        self.n, self.k, self.group = n, k, group
        self.codes = generator.integers(-8, 8, (n, k), dtype=np.int8)
        self.scales = (generator.uniform(0.5, 1.5, (n, k // group)) / 256).astype(np.float16).astype(np.float32)

    @property
    def dense(self) -> Array:
        return self.codes.astype(np.float32) * np.repeat(self.scales, self.group, axis=1)

    @property
    def nibbles(self) -> NDArray[np.uint8]:
        """Two codes a byte, the first in the low half, as two's complement."""
        return pairs((self.codes & 15).astype(np.uint8))


def pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two codes of 4 bits a byte, the first in the low half."""
    return np.bitwise_or(codes[:, 0::2], np.left_shift(codes[:, 1::2], 4), dtype=np.uint8)


def openvino(weight: Weight, threads: int, dynamic_group: int) -> tuple[Product, str]:
    """OpenVINO's product; `dynamic_group`: inputs that share a scale in int8, 0: none are rounded."""
    ov: Any = importlib.import_module("openvino")
    op: Any = importlib.import_module("openvino.opset13")
    n, k, groups = weight.n, weight.k, weight.k // weight.group
    tensor = ov.Tensor(ov.Type.i4, [n, groups, weight.group])
    tensor.data.view(np.uint8).reshape(-1)[:] = weight.nibbles.reshape(-1)
    scale = op.constant(weight.scales[:, :, None])
    dense = op.reshape(op.multiply(op.convert(op.constant(tensor), np.float32), scale), op.constant([n, k]), False)
    x = op.parameter([-1, k], np.float32)
    model = ov.Model([op.result(op.matmul(x, dense, False, True))], [x])
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(dynamic_group),
    }

    @cache
    def request(rows: int) -> Any:
        """Of a model of just so many rows."""
        model.reshape([rows, k])
        return ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    return lambda rows: np.array(request(len(rows)).infer({0: rows})[0]), str(ov.__version__)


def onnxruntime(weight: Weight, threads: int) -> tuple[Product, str]:
    """ONNX Runtime's MatMulNBits with inputs rounded to int8 (accuracy level 4)."""
    ort: Any = importlib.import_module("onnxruntime")
    onnx: Any = importlib.import_module("onnx")
    n, k, group = weight.n, weight.k, weight.group
    unsigned = (weight.codes + 8).astype(np.uint8)  # the zero point is 8 where none is given
    packed = pairs(unsigned).reshape(n, k // group, group // 2)
    tensors = [onnx.numpy_helper.from_array(packed, "b"), onnx.numpy_helper.from_array(weight.scales.reshape(-1), "s")]
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=group, accuracy_level=4,
    )  # fmt: skip
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["m", width])
        for name, width in (("x", k), ("y", n))
    ]
    graph = onnx.helper.make_graph([node], "product", ends[:1], ends[1:], tensors)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda rows: np.asarray(session.run(None, {"x": rows})[0]), str(ort.__version__)


def made(weight: Weight, threads: int) -> dict[str, tuple[Product, str]]:
    """Every system whose packages are here. BackendError for none."""
    makers: dict[str, Callable[[], tuple[Product, str]]] = {
        OPENVINO: lambda: openvino(weight, threads, 0),
        OPENVINO_INT8: lambda: openvino(weight, threads, weight.group),
        ORT: lambda: onnxruntime(weight, threads),
    }
    found = dict[str, tuple[Product, str]]()
    for name, make in makers.items():
        with contextlib.suppress(ModuleNotFoundError):
            found[name] = make()
    if not found:
        raise BackendError(f"no library to compare with: {NEEDS}")
    return found


def main() -> None:
    """The child process."""
    reply, asked = child.replier(), child.asked()
    weight = Weight(asked["n"], asked["k"], asked["group"])
    systems, dense = made(weight, asked["threads"]), weight.dense.T.astype(np.float64)
    reply({name: version for name, (_, version) in systems.items()})
    inputs, truths = dict[int, Array](), dict[int, NDArray[np.float64]]()
    for name, rows in child.questions():
        if rows not in inputs:
            inputs[rows] = np.random.default_rng(1).standard_normal((rows, weight.k)).astype(np.float32)
            truths[rows] = inputs[rows].astype(np.float64) @ dense
        milliseconds, got = fastest(partial(systems[name][0], inputs[rows]))
        reply([milliseconds, relative_error(got, truths[rows])])


if __name__ == "__main__":
    main()
