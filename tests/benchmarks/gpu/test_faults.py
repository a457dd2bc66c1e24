"""What fails inside a part of `make bench-gpu` costs its own row, and what is timed is what is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu import clock, latency, memory, stages, systems, tokens, weights
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, W4A16, W8A8, W8A16, Configuration, load
from benchmarks.gpu.kernel_checks.cases import of_policy
from benchmarks.gpu.kernel_checks.check import RandomInputs
from benchmarks.gpu.peers import Compiled
from benchmarks.gpu.run import DRY, Run
from benchmarks.gpu.systems import System, Task
from edge_vla.bench.peers.llama import llama
from edge_vla.device.sensors import GpuMemory
from edge_vla.errors import DeviceLostError
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.spec import TINY
from tests.runtime.gpu.engines import CPU

CUDA = torch.device("cuda")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    result = gpu_plan.empty_result(DRY, CPU, "reference")
    return Run(tmp_path / "a.json", DRY, CPU, "reference", weights.seeded(DRY.model, CPU), tmp_path, 60.0, result)


def raises(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


UNCLEAR = [
    DeviceLostError("the GPU failed"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: invalid argument"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
]


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("error", UNCLEAR, ids=str)
def test_a_device_is_lost_when_it_no_longer_computes(
    error: Exception, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not tell. Nothing more is started on a lost device; on a working one the other parts go on."""
    monkeypatch.setattr(stages, "ceilings", raises(error))
    if not alive:
        monkeypatch.setattr(gpu_run, "probe", raises(RuntimeError("CUDA error: an illegal memory access")))
    path = gpu_plan.bench(tmp_path, dry=True, only=["ceilings", "stages bf16"])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert str(error) in result["ceilings"]["failed"]
    later = result["stages"]["bf16"]
    assert later["failed"] is None
    assert (later["measured"] is not None) == alive, "on a lost device nothing more is started in this process"


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_a_full_device_is_not_lost(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "probe", raises(torch.OutOfMemoryError("not one number fits")))
    assert not gpu_run.lost(RuntimeError(message))
    assert not gpu_run.lost(RuntimeError("CUDA error: invalid argument"))
    assert gpu_run.reason(RuntimeError(message)) == f"RuntimeError: {message}"


def test_a_system_that_fails_in_its_turn_drops_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def system(name: str, last: int) -> System:
        """Fails at its action `last`."""
        asked = list[int]()

        def act(index: int) -> tuple[int, ...]:
            asked.append(index)
            if len(asked) == last:
                raise ValueError(f"{name} failed")
            return (1, 2)

        return System(name, act, "", ours=name == "bf16")

    def makers(*_: object) -> list[tuple[str, Callable[[], System]]]:
        warm = 2 * latency.WARM_UPS + 3  # cold, warm, its tokens, warm again, and to see how long it takes
        last = {"bf16": 0, "early": warm, "late": warm + 2, "other": 0}
        return [(name, lambda name=name: system(name, last[name])) for name in last]  # type: ignore[misc]

    monkeypatch.setattr(latency, "makers", makers)
    table = latency.latency_of(run, [], [])
    rows = {row.name: row for row in table.systems}
    assert {name for name, row in rows.items() if row.times is not None} == {"bf16", "other"}
    for name in ("early", "late"):
        assert rows[name].failed == f"ValueError: {name} failed"
    assert [(one.system, one.other) for one in table.comparisons] == [("bf16", "other")]


def test_graphs_are_recorded_after_every_system_has_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that compiles may have cleared what earlier graphs used."""
    events = list[str]()

    def system(name: str) -> System:
        events.append(f"loaded {name}")
        return System(name, lambda index: (index,), "", reset=lambda: events.append(f"reset {name}"))

    monkeypatch.setattr(latency, "makers", lambda *_: [(name, lambda name=name: system(name)) for name in "ab"])
    latency.latency_of(run, [], [])
    assert events == ["loaded a", "loaded b", "reset a", "reset b"]
    engine = load(run, W4A16)
    ours = systems.plain(W4A16, engine, Task.make(run.checkpoint, 1, DRY.prompt, DRY.dims, CPU))
    ours.act(0)
    assert len(engine.graphs) == 1
    ours.reset()
    assert len(engine.graphs) == 0


@pytest.mark.slow
def test_a_configuration_that_fails_leaves_the_others_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_of = tokens.tokens_of

    def only_16(artifact: Any, dtype: Any, device: Any, backend: Any, activations: Any) -> Any:
        if activations == "8":
            raise ValueError("8")
        return from_artifact(artifact, dtype, device, backend, activations)

    def but_int8(run: Run, task: Task, configuration: Configuration, backend: Any) -> Any:
        if configuration.bits == 8:
            raise ValueError("no")
        return tokens_of(run, task, configuration, backend)

    monkeypatch.setattr(tokens, "from_artifact", only_16)
    monkeypatch.setattr(tokens, "tokens_of", but_int8)
    failed = {row.configuration for row in tokens.demo_tokens(run).rows if row.failed is not None}
    assert failed == {one.name for one in CONFIGURATIONS if one.activations == "8"}
    failed = {row.configuration for row in tokens.agreement(run).rows if row.failed is not None}
    assert failed == {W8A16.name, W8A8.name}


def test_an_artifact_is_written_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_vision", raises(OSError("no space left on device")))
        with pytest.raises(OSError, match="no space"):
            load(run, BF16)
    assert not (run.scratch / "16-16").exists()
    assert load(run, BF16).network.spec == TINY, "what is left of the first attempt does not hinder the second"


def test_each_run_is_cold_and_never_waits_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    events = list[str]()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            events.append("event")

        def elapsed_time(self, other: object) -> float:
            return 0.25

    class Flush:
        def sum(self) -> None:
            events.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(clock, "flush_buffer", lambda device: Flush())
    assert clock.device_ms(lambda: events.append("work"), CUDA, 2) == 0.25
    assert events[clock.WARM_UPS :] == [*["flush", "event", "work", "event"] * 2, "wait"]


def test_only_the_launch_is_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the sums, clones and gathers that compare a kernel's output."""
    checks = {case.kernel: case.make(RandomInputs.seeded(0, CPU, torch.bfloat16)) for case in of_policy(TINY, 32, 32)}
    alone = {"quantise_rows"}  # what the check runs is the launch itself
    assert {kernel for kernel, check in checks.items() if check.launch is None} == alone
    timed = list[object]()

    def device_ms(work: Callable[[], object], *_: object) -> float:
        timed.append(work)
        return 1.0

    case = of_policy(TINY, 32, 32)[0]
    check = case.make(RandomInputs.seeded(0, CPU, torch.bfloat16))
    bare = replace(check, kernel=check.plain, launch=lambda: None)
    monkeypatch.setattr(stages, "device_ms", device_ms)
    monkeypatch.setattr(stages, "cases_of", lambda run: [replace(case, make=lambda inputs: bare)])
    run.backend = "triton"
    assert stages.kernels(run).failing == 0
    assert timed == [bare.launch]


class Nvml:
    """A driver whose used memory is the next of these numbers each time it is asked."""

    NVMLError = RuntimeError

    def __init__(self, used: Iterator[int]) -> None:
        self.used = used

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return type("Memory", (), {"used": next(self.used)})

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return []


def test_device_memory_is_the_largest_that_is_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML keeps no peak, and loading may be the fullest moment."""
    monkeypatch.setattr(memory, "open_nvml", lambda: GpuMemory(Nvml(iter([5000, 9000, 7000, 6000]))))
    directory = weights.write(run.scratch / "a", run.checkpoint, 4, 8, CPU).directory
    peaks = memory.measure(directory, CPU, "reference", DRY.prompt, DRY.dims).nvml
    assert peaks is not None
    assert (peaks.device_peak_bytes, peaks.device_start_bytes) == (9000, 5000)


def test_an_empty_context_is_what_the_driver_sees_beside_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    assert memory.context_bytes(CUDA, GpuMemory(Nvml(iter([5000, 5600])))) == 580
    assert memory.context_bytes(CUDA, None) is None


@pytest.mark.slow
def test_the_compiled_peer_compiles_once(run: Run) -> None:
    """Its cache exists before, at fixed addresses: otherwise Inductor makes no CUDA graph of a step."""
    task = Task.make(run.checkpoint, 2, DRY.prompt, DRY.dims, CPU)
    torch._dynamo.reset()
    peer = Compiled(run.checkpoint, llama(run.checkpoint, torch.bfloat16, CPU, "sdpa"), task, "eager")
    for layer in peer.cache.layers:
        assert all(hasattr(tensor, "_dynamo_static_input_type") for tensor in (layer.keys, layer.values))
    peer.act(0)
    graphs = counters["stats"]["unique_graphs"]
    peer.act(1)
    assert counters["stats"]["unique_graphs"] == graphs
