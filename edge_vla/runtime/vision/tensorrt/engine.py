"""A TensorRT engine as a vision: pixels to image rows where both lie on the device, on the caller's stream.

Nothing passes through the host, and all its work is on one stream, so a CUDA graph can hold it. It has not run on a
GPU yet: tests drive it with an object that records the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.errors import ArtifactError, BackendError
from edge_vla.runtime.vision.graphs import INPUT, ROWS, build_command, find_graph, first_graph
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.tensorrt.library import Library, library
from edge_vla.runtime.vision.tensorrt.plan import PlanIdentity, device_cache, find_plan

DTYPE: Final = torch.bfloat16  # of the rows, as build.py ends every engine
BF16_ROWS: Final = "bf16"


class TensorRTVision:
    """Pixel values (1, 3 x towers, H, W) float32 -> image rows (patches, decoder width) bf16.

    `context` is an IExecutionContext of a batch-1 engine; `stream` gives the handle of the stream to run on.
    """

    capturable: Final = True

    def __init__(
        self, context: Any, rows: tuple[int, int], device: torch.device, size: int, stream: Callable[[], int]
    ) -> None:
        self.context, self.shape, self.device, self.bytes, self._stream = context, rows, device, size, stream

    def write(self, pixels: Tensor, rows: Tensor) -> None:
        """Fill `rows` in place. Both must be contiguous and on the device; AssertionError else."""
        assert pixels.dtype == torch.float32, f"pixels are float32, got {pixels.dtype}"
        assert rows.dtype == DTYPE, f"rows are {DTYPE}, got {rows.dtype}"
        assert pixels.is_contiguous(), "an engine reads contiguous pixels"
        assert rows.is_contiguous(), "an engine writes contiguous rows"
        assert tuple(rows.shape) == self.shape, f"rows are {self.shape}, got {tuple(rows.shape)}"
        set_up = (
            self.context.set_input_shape(INPUT, tuple(pixels.shape)),
            self.context.set_tensor_address(INPUT, pixels.data_ptr()),
            self.context.set_tensor_address(ROWS, rows.data_ptr()),
        )
        if not all(set_up) or not self.context.execute_async_v3(self._stream()):
            raise BackendError("the TensorRT engine did not start: set EDGE_VLA_DEBUG=1, or run with --vision torch")

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3 x towers, H, W) -> (B, patches, width), one image after the other."""
        values = pixels.to(self.device, torch.float32).contiguous()
        out = torch.empty(len(values), *self.shape, dtype=DTYPE, device=self.device)
        for image, rows in zip(values, out, strict=True):
            self.write(image[None], rows)
        return out


def this_gpu(found: Library, device: torch.device) -> str:
    """As plans name it: TensorRT's belong to one GPU, TensorRT-RTX's to a compute capability."""
    major, minor = torch.cuda.get_device_capability(device)
    capability = f"sm_{major}{minor}"
    return capability if found.rtx else f"{torch.cuda.get_device_name(device)} ({capability})"


def load_engine(precisions: tuple[Precision, ...], artifact: Artifact, device: torch.device) -> TensorRTVision:
    """The engine of the first of `precisions` that has a graph on this device. BackendError or ArtifactError else."""
    if device.type != "cuda":  # first: a TensorRT that is installed helps no machine without a GPU
        raise BackendError(
            "--vision tensorrt needs --device cuda, and torch sees no CUDA device: check nvidia-smi, or --vision auto"
        )
    folder = device_cache(artifact.identity)
    chosen, found = first_graph(folder, precisions), library()
    rebuild = build_command(artifact, chosen)
    graph = find_graph(folder, artifact, chosen)
    identity = PlanIdentity(graph.identity, chosen, str(found), this_gpu(found, device), BF16_ROWS)
    path = find_plan(folder, identity, rebuild)
    spec = artifact.manifest.config.spec
    context, size = _context(found, path, rebuild)
    return TensorRTVision(
        context,
        (spec.patches, spec.decoder.width),
        device,
        size,
        lambda: int(torch.cuda.current_stream(device).cuda_stream),
    )


def _context(found: Library, plan: Path, rebuild: str) -> tuple[Any, int]:
    """A context of the plan, and the plan's size, which is about what its weights take."""
    trt = found.module
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise ArtifactError(f"{found} does not load {plan}: {rebuild} --fresh")
    context = engine.create_execution_context()
    if context is None:
        raise BackendError(f"{found} has no memory for the engine's activations: close other programs")
    return context, plan.stat().st_size
