"""Work recorded once and replayed: a CUDA graph per key, a bounded number of them, the least recently used let go.

What is recorded may read and write only tensors that stay where they are. Knows streams and graphs; knows nothing of
what they compute. On a CPU, where there is nothing to record, `Direct` runs the work itself again.
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
MOST: Final = 32  # graphs: eight lengths in four pieces; at 7B each takes some megabytes of launch parameters
WARM_UPS: Final = 2  # runs before a recording: kernels are compiled and libraries opened outside of it


class Recorder(Protocol):
    def record(self, work: Work) -> Work:
        """Something that does all over again what `work` does on the device, each time it is called."""
        ...


class Direct:
    """No recording: the work itself, after a first run."""

    def record(self, work: Work) -> Work:
        work()
        return work


class CudaGraphs:
    """Records on a stream of its own, as capture demands; all graphs share one pool, for they run one at a time.

    A pool is over with the last graph in it: torch does not begin it again.
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
            torch.cuda.stream(current),  # a capture that fails to end leaves its own stream behind as the current one
            _workspaces_of_its_own(),
            # thread_local: another thread may meanwhile copy or allocate on its own account.
            torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        torch.cuda.synchronize(self.device)
        self._alive.add(graph)
        return graph.replay


@contextmanager
def _workspaces_of_its_own() -> Iterator[None]:
    """cuBLAS workspaces that a capture uses are made in it, so its pool keeps them, and serve nothing after it.

    One from before lies outside of the pool, and whoever clears them (a graph let go, Inductor) frees it.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def recorder(device: torch.device) -> Recorder:
    return CudaGraphs(device) if device.type == "cuda" else Direct()


class Graphs:
    """Replays by key; what a key is asked for the first time is recorded then."""

    def __init__(self, recorder: Recorder, cuda: CudaDevice, most: int = MOST) -> None:
        self.recorder, self.cuda, self.most = recorder, cuda, most
        self._replays: OrderedDict[Hashable, Work] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._replays

    def __len__(self) -> int:
        return len(self._replays)

    def ready(self, key: Hashable, work: Work) -> None:
        """Record `key` unless that is done. The recording runs the work, so its inputs must be sound."""
        if key in self._replays:
            return
        # Before recording: a graph that is let go makes room for the new one.
        while len(self._replays) >= self.most:
            self._replays.popitem(last=False)
        with self.cuda.guard(f"recording the graph of {key}"):
            self._replays[key] = self.recorder.record(work)

    def run(self, key: Hashable, work: Work) -> None:
        """Do `work`, by replaying the recording of `key`."""
        self.ready(key, work)
        self._replays.move_to_end(key)
        self._replays[key]()

    def clear(self) -> None:
        """Let go of all: the tensors that they hold on to are about to be replaced."""
        self._replays.clear()
