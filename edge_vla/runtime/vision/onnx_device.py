"""A typed ONNX graph in ONNX Runtime on CUDA, by its CUDA or TensorRT provider, bound to device pointers.

ONNX Runtime runs on a stream of its own that waits for the caller's and is waited for, on the device. It allocates
while it runs, so no CUDA graph can hold it: an engine runs it before. It has not run on a GPU yet: tests bind host
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.errors import BackendError
from edge_vla.runtime.vision.graphs import INPUT, OUTPUT, find_graph, first_graph
from edge_vla.runtime.vision.onnx import open_session, runtime
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.tensorrt.plan import device_cache

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"


class BoundOnnxVision:
    """Pixel values (1, 3 x towers, H, W) float32 -> image rows (patches, decoder width) of any type, on one device."""

    capturable: Final = False

    def __init__(
        self, session: Any, rows: tuple[int, int], device: torch.device, size: int, stream: Any = None
    ) -> None:
        self.session, self.shape, self.device, self.bytes, self._own = session, rows, device, size, stream
        self._embeddings = torch.empty(1, *rows, device=device)  # float32, as the graph ends
        self._options = runtime().RunOptions()
        # Else every run ends with the host waiting for the device.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def write(self, pixels: Tensor, rows: Tensor) -> None:
        """Fill `rows` in place, converted on the device. `pixels` must be contiguous and on the device."""
        assert pixels.dtype == torch.float32, f"pixels are float32, got {pixels.dtype}"
        assert pixels.is_contiguous(), "a binding reads contiguous pixels"
        binding = self.session.io_binding()
        place = {"device_type": self.device.type, "device_id": self.device.index or 0, "element_type": np.float32}
        binding.bind_input(INPUT, **place, shape=tuple(pixels.shape), buffer_ptr=pixels.data_ptr())
        shape, pointer = tuple(self._embeddings.shape), self._embeddings.data_ptr()
        binding.bind_output(OUTPUT, **place, shape=shape, buffer_ptr=pointer)
        with self._between():
            self.session.run_with_iobinding(binding, self._options)
        rows.copy_(self._embeddings[0])

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3 x towers, H, W) -> (B, patches, width) float32, one image after the other."""
        values = pixels.to(self.device, torch.float32).contiguous()
        out = torch.empty(len(values), *self.shape, device=self.device)
        for image, rows in zip(values, out, strict=True):
            self.write(image[None], rows)
        return out

    @contextmanager
    def _between(self) -> Iterator[None]:
        """Behind what the caller's stream has so far, and before what it gets next."""
        if self._own is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self._own.wait_stream(current)
        yield
        current.wait_stream(self._own)


def load_bound(
    precisions: tuple[Precision, ...], provider: str, name: str, artifact: Artifact, device: torch.device
) -> BoundOnnxVision:
    """The first of `precisions` that has a graph on this device, on `provider`. BackendError with the remedy."""
    if device.type != "cuda":
        raise BackendError(f"--vision {name} needs --device cuda, and torch sees no CUDA device: check nvidia-smi")
    folder = device_cache(artifact.identity)
    graph = find_graph(folder, artifact, first_graph(folder, precisions))
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    session = open_session(graph, provider, provider_options(provider, device, own.cuda_stream, str(folder)), name)
    spec = artifact.manifest.config.spec
    return BoundOnnxVision(session, (spec.patches, spec.decoder.width), device, graph.data.stat().st_size, own)


def provider_options(provider: str, device: torch.device, stream: int, folder: str) -> Mapping[str, str]:
    """Our stream; for TensorRT also where its engines are kept, because it builds one when the session opens."""
    common = {"device_id": str(device.index or 0), "has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    if provider != TENSORRT:
        return common
    kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder, "trt_timing_cache_enable": "1"}
    return {**common, **kept, "trt_timing_cache_path": folder}
