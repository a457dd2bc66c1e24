"""What goes wrong inside of a part of `make bench-gpu` costs its own row, and what is measured is what is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu import __main__, clock, latency, memory, stages, systems, tokens
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu import weights as weights
from benchmarks.gpu.forms import FORMS, load
from benchmarks.gpu.kernel_checks.cases import of_policy
from benchmarks.gpu.kernel_checks.check import Maker
from benchmarks.gpu.run import DRY, Run
from benchmarks.gpu.systems import BF16, Compiled, Side, Task
from edge_vla.bench.peers.llama import llama
from edge_vla.device.sensors import GpuMemory
from edge_vla.errors import DeviceLostError
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.spec import TINY
from tests.runtime.gpu.engines import CPU

CUDA = torch.device("cuda")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    source = weights.seeded(DRY.model, CPU)
    return Run(tmp_path / "result.json", DRY, CPU, "reference", source, tmp_path, 60.0, {"parts": {}})


def says(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


UNSURE = [
    DeviceLostError("the GPU failed"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: invalid argument"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
]


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("error", UNSURE, ids=str)
def test_a_card_is_lost_when_it_computes_no_more(
    error: Exception, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words do not tell. Nothing is asked of a lost one; where it still computes, the other parts go on."""
    monkeypatch.setattr(stages, "ceilings", says(error))
    if not alive:
        monkeypatch.setattr(gpu_run, "probe", says(RuntimeError("CUDA error: an illegal memory access")))
    path = __main__.bench(tmp_path, dry=True, only=["ceilings", "stages: bf16"])
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert str(error) in parts["ceilings"]["failed"]
    assert ("failed" in parts["stages: bf16"]) is not alive
    assert alive or str(error) in parts["stages: bf16"]["failed"]


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_a_full_card_is_not_lost(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "probe", says(torch.OutOfMemoryError("not one number fits")))
    assert not gpu_run.lost(RuntimeError(words))
    assert not gpu_run.lost(RuntimeError("CUDA error: invalid argument"))
    assert gpu_run.reason(RuntimeError(words)) == f"RuntimeError: {words}"


def test_a_side_that_breaks_in_its_turn_drops_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def side(name: str, last: int) -> Side:
        """Breaks at its action `last`."""
        asked = list[int]()

        def act(index: int) -> tuple[int, ...]:
            asked.append(index)
            if len(asked) == last:
                raise ValueError(f"{name} has had enough")
            return (1, 2)

        return Side(name, act, "")

    def makers(*_: object) -> list[tuple[str, Callable[[], Side]]]:
        warm = 2 * latency.FIRST + 3  # cold, warm, its tokens, warm again, and to see how long it takes
        last = {"bf16": 0, "early": warm, "late": warm + 2, "other": 0}
        return [(name, lambda name=name: side(name, last[name])) for name in last]  # type: ignore[misc]

    monkeypatch.setattr(latency, "_makers", makers)
    found = latency.latency_of(run, [], [])
    assert {name for name, row in found["sides"].items() if "p50_ms" in row} == {"bf16", "other"}
    for name in ("early", "late"):
        assert found["sides"][name]["failed"] == f"ValueError: {name} has had enough"
    assert set(found["times_faster"]) == {"bf16"}
    assert set(found["times_faster"]["bf16"]) == {"other"}


def test_what_is_timed_is_recorded_after_every_side_was_made(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that compiles may have cleared what graphs of before it used."""
    said = list[str]()

    def side(name: str) -> Side:
        said.append(f"made {name}")
        return Side(name, lambda index: (index,), "", renew=lambda: said.append(f"renewed {name}"))

    monkeypatch.setattr(latency, "_makers", lambda *_: [(name, lambda name=name: side(name)) for name in "ab"])
    latency.latency_of(run, [], [])
    assert said == ["made a", "made b", "renewed a", "renewed b"]
    task = Task.make(run.checkpoint, 1, DRY.text, DRY.dims, CPU)
    engine = load(run, "int4, w4a16 prefill")
    ours = systems.ours("ours", engine, task, "")
    ours.act(0)
    assert len(engine.graphs) == 1
    ours.renew()
    assert len(engine.graphs) == 0


def test_a_form_that_fails_leaves_the_others_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, answers = from_artifact, tokens._answers

    def only_16(artifact: Any, dtype: Any, device: Any, backend: Any, activations: str) -> Any:
        return kept(artifact, dtype, device, backend, "16") if activations == "16" else says(ValueError("8"))()

    def but_int8(run: Run, task: Task, form: str, backend: Any) -> Any:
        return says(ValueError("no"))() if form.startswith("int8") else answers(run, task, form, backend)

    monkeypatch.setattr(tokens, "from_artifact", only_16)
    monkeypatch.setattr(tokens, "_answers", but_int8)
    rows = {row["form"]: row for row in tokens.demo_tokens(run)["forms"]}
    assert {name for name, row in rows.items() if "failed" not in row} == {
        name for name, (_, _, activations) in FORMS.items() if activations == "16"
    }
    rows = {row["form"]: row for row in tokens.agreement(run)["forms"]}
    assert {name for name, row in rows.items() if "failed" in row} == {"int8, w8a16 prefill", "int8, w8a8 prefill"}


def test_an_artifact_is_there_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_vision", says(OSError("no space left on device")))
        with pytest.raises(OSError, match="no space"):
            load(run, "bf16")
    assert not (run.scratch / "int16").exists()
    assert load(run, "bf16").graphs is not None, "what was left of the first try is no hindrance"


def test_nothing_is_timed_hot_or_waiting_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def elapsed_time(self, other: object) -> float:
            return 0.25

    class Flush:
        def zero_(self) -> None:
            said.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("wait"))
    monkeypatch.setattr(clock, "room_to_flush", lambda device: Flush())
    assert clock.device_ms(lambda: said.append("work"), CUDA, 2) == 0.25
    assert said[clock.WARM_UPS :] == [*["flush", "event", "work", "event"] * 2, "wait"]


def test_a_clock_runs_the_launch_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the sums, clones and gathers by which a kernel's output is judged."""
    checks = {case.name: case.make(Maker.seeded(0, CPU, BF16)) for case in of_policy(TINY, 32, 32)}
    apart = {name.split(",")[0].split(" ")[0] for name, check in checks.items() if check.launch is not None}
    assert apart == {"w4a16_gemv", "w8a16_gemv", "rms_norm", "swiglu", "rotary", "head"}
    timed = list[object]()

    def clock(work: Callable[[], object], *_: object) -> float:
        timed.append(work)
        return 1.0

    case = of_policy(TINY, 32, 32)[0]
    check = case.make(Maker.seeded(0, CPU, BF16))
    bare = replace(check, kernel=check.plain, launch=lambda: None)
    monkeypatch.setattr(stages, "device_ms", clock)
    monkeypatch.setattr(stages, "_cases", lambda run: [replace(case, make=lambda make: bare)])
    run.backend = "triton"
    assert stages.kernels(run)["passed"] == 1
    assert timed == [bare.launch]


def test_memory_is_the_largest_that_is_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML has no peak of its own: loading may be the fullest moment. What was there before is nobody's context."""
    used = iter([5000, 9000, 7000, 6000])

    class Library:
        NVMLError = RuntimeError

        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            return 1

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
            return index

        def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
            return type("Memory", (), {"used": next(used)})

        def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
            return []

    monkeypatch.setattr(memory, "_nvml", lambda: GpuMemory(Library()))
    directory = weights.write(run.scratch / "a", run.checkpoint, 4, 8, CPU).directory
    found: Mapping[str, Any] = memory.measure(directory, CPU, "reference", DRY.text, DRY.dims)
    assert found["nvml"]["device_peak_bytes"] == 9000
    assert found["nvml"]["device_before_bytes"] == 5000

    used = iter([5000, 5600])
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    assert memory._context(CUDA, GpuMemory(Library())) == 580
    assert memory._context(CUDA, None) is None


def test_the_compiled_peer_compiles_once(run: Run) -> None:
    """Its cache is there before, at addresses that stay: without that Inductor makes no CUDA graph of a step."""
    task = Task.make(run.checkpoint, 2, DRY.text, DRY.dims, CPU)
    torch._dynamo.reset()
    made = Compiled(run.checkpoint, llama(run.checkpoint, BF16, CPU, "sdpa"), task, "eager")
    for layer in made.cache.layers:
        assert all(hasattr(tensor, "_dynamo_static_input_type") for tensor in (layer.keys, layer.values))
    made.act(0)
    graphs = counters["stats"]["unique_graphs"]
    made.act(1)
    assert counters["stats"]["unique_graphs"] == graphs
