"""What is recorded, what is let go and in which order; what is replayed is what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from edge_vla.errors import DeviceLostError, ResourceError
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.graph import WARM_UPS, CudaGraphs, Direct, Graphs, Work
from tests.runtime.gpu.engines import CPU, Counted


def graphs(most: int) -> tuple[Graphs, Counted]:
    counted = Counted()
    return Graphs(counted, CudaDevice(CPU), most), counted


def test_the_least_recently_used_goes_first() -> None:
    kept, counted = graphs(2)
    for key in "abab":
        kept.run(key, lambda: None)
    assert counted.recorded == 2
    kept.run("a", lambda: None)
    kept.run("c", lambda: None)
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, False, True)
    assert len(kept) == 2
    kept.run("b", lambda: None)
    assert counted.recorded == 4
    assert counted.replayed == 7


def test_a_key_keeps_the_work_it_was_recorded_with() -> None:
    kept, _ = graphs(2)
    seen = list[str]()
    kept.run("a", lambda: seen.append("first"))
    kept.run("a", lambda: seen.append("second"))
    assert set(seen) == {"first"}


def test_ready_records_without_replaying() -> None:
    kept, counted = graphs(2)
    kept.ready("a", lambda: None)
    kept.ready("a", lambda: None)
    assert (counted.recorded, counted.replayed) == (1, 0)
    kept.clear()
    assert len(kept) == 0


class Failing:
    """A recorder whose recording ends as torch's does when something goes wrong inside of a capture."""

    def __init__(self, inside: RuntimeError, at_the_end: RuntimeError | None = None) -> None:
        self.inside, self.at_the_end = inside, at_the_end

    def record(self, work: Work) -> Work:
        if self.at_the_end is None:
            raise self.inside
        try:
            raise self.inside
        finally:
            raise self.at_the_end


INVALID = RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("at_the_end", [None, INVALID])
def test_memory_that_runs_out_in_a_recording(at_the_end: RuntimeError | None) -> None:
    """`torch.cuda.graph` ends the capture on the way out, and that fails too, with other words."""
    cuda = CudaDevice(CPU)
    kept = Graphs(Failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), at_the_end), cuda)
    with pytest.raises(ResourceError, match=r"recording the graph of a: out of memory.*fewer bits"):
        kept.run("a", lambda: None)
    assert not cuda.lost
    assert len(kept) == 0
    kept.recorder = Direct()
    kept.run("a", lambda: None)


def test_a_capture_that_breaks_loses_the_card() -> None:
    cuda = CudaDevice(CPU)
    kept = Graphs(Failing(RuntimeError("CUDA error: an illegal memory access was encountered")), cuda)
    with pytest.raises(DeviceLostError, match="recording the graph of a: CUDA error: an illegal memory access"):
        kept.run("a", lambda: None)
    assert cuda.lost


class Cuda:
    """What a recording asks of `torch.cuda`, as a log, and the stream that is current. `broken`: no capture ends."""

    def __init__(self, patch: pytest.MonkeyPatch, *, broken: bool = False) -> None:
        self.log, self.current, self.broken = list[str](), "the caller's", broken
        patch.setattr(torch.cuda, "Stream", lambda device: _Stream())
        patch.setattr(torch.cuda, "CUDAGraph", _Graph)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "graph", self.graph)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.log.append("clear"), raising=False)

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, str(stream)
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, *, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        """Its end as torch has it: the stream is put back after what may raise."""
        assert (pool, capture_error_mode) == ((0, 1), "thread_local")
        before, self.current = self.current, str(stream)
        self.log.append("begin")
        try:
            yield
        finally:
            if self.broken:
                raise INVALID
            self.log.append("end")
            self.current = before


class _Stream:
    def __str__(self) -> str:
        return "the recorder's"

    def wait_stream(self, other: object) -> None:
        assert other == "the caller's"


class _Graph:
    def replay(self) -> None: ...


def test_a_recording_shares_no_library_workspace_with_anything_outside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever clears workspaces, as Inductor does and torch where a graph is let go, frees what a graph uses."""
    cuda = Cuda(monkeypatch)
    CudaGraphs(CPU).record(lambda: cuda.log.append(f"work on {cuda.current}"))
    work = "work on the recorder's"
    assert cuda.log == [*[work] * WARM_UPS, "clear", "begin", work, "end", "clear"]
    assert cuda.current == "the caller's"


def test_a_capture_that_does_not_end_leaves_the_callers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, broken=True)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraphs(CPU).record(lambda: None)
    assert cuda.current == "the caller's"
    assert cuda.log == ["clear", "begin", "clear"]
