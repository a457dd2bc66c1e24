"""Work captured once and replayed: one CUDA graph per key, a bounded number of them, the least recently used dropped.

Captured work may read and write only tensors whose addresses stay. Knows streams and graphs; knows nothing of what they
compute. On a CPU, where there is nothing to capture, `Direct` runs the work itself each time.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import torch

from edge_vla.runtime.gpu.device import CudaDevice

Work = Callable[[], None]
MAX_GRAPHS: Final = 32  # eight prompt lengths in four pieces; at 7B each takes some megabytes of launch parameters
WARM_UPS: Final = 2  # runs before a capture, which compile kernels and open libraries outside of it


class Recorder(Protocol):
    def record(self, work: Work) -> Work:
        """Run `work` and return a callable that repeats on the device what it did."""
        ...


class Direct:
    """No capture: the work itself, after a first run."""

    def record(self, work: Work) -> Work:
        work()
        return work


class CudaGraphs:
    """Captures on its own stream, as CUDA requires. All graphs share one memory pool, for they run one at a time.

    A pool ends with the last graph in it: torch does not reuse it, so the next capture gets a new one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.synchronize(self.device)
        if not self._alive:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(current),  # a capture that fails to end leaves its own stream as the current one
            _own_workspaces(),
            # thread_local: other threads may copy or allocate meanwhile
            torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        torch.cuda.synchronize(self.device)
        self._alive.add(graph)
        return graph.replay


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """The cuBLAS workspaces of a capture are allocated in it, so that its pool owns them, and are not used after it.

    An earlier one lies outside the pool, and whoever clears workspaces (a dropped graph, Inductor) would free it.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def recorder(device: torch.device) -> Recorder:
    return CudaGraphs(device) if device.type == "cuda" else Direct()


class Graphs:
    """Graphs by key; a key is captured when it is first run."""

    def __init__(self, recorder: Recorder, cuda: CudaDevice, most: int = MAX_GRAPHS) -> None:
        self.recorder, self.cuda, self.most = recorder, cuda, most
        self._replays: OrderedDict[Hashable, Work] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._replays

    def __len__(self) -> int:
        return len(self._replays)

    def ready(self, key: Hashable, work: Work) -> None:
        """Capture `key` unless that is done. Capturing runs the work, so its inputs must be valid."""
        if key in self._replays:
            return
        # Before the capture, so that the dropped graph's memory is free for the new one.
        while len(self._replays) >= self.most:
            self._replays.popitem(last=False)
        with self.cuda.guard(f"recording the graph of {key}"):
            self._replays[key] = self.recorder.record(work)

    def run(self, key: Hashable, work: Work) -> None:
        """Do `work` by replaying the graph of `key`."""
        self.ready(key, work)
        self._replays.move_to_end(key)
        self._replays[key]()

    def clear(self) -> None:
        """Drop all graphs; needed before the tensors that they use are replaced."""
        self._replays.clear()
