"""A part that ends its process, or never ends, costs its own row: the others are measured in another process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import run as gpu_run
from benchmarks.gpu import stages, supervise
from benchmarks.gpu.plan import empty_result, measure
from benchmarks.gpu.result import GpuResult, Part, read, write
from benchmarks.gpu.run import DRY
from edge_vla.device.limits import Ceilings
from tests.runtime.gpu.engines import CPU

ONLY = ("ceilings", "stages bf16")


def killed(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(_: object) -> None:
    time.sleep(60)


def losing(_: object) -> None:
    gpu_run.lost = lambda error: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def with_ceilings(broken: Callable[[Any], Any], given: tuple[Path, Path, float, Sequence[str]]) -> GpuResult:
    """`measure`, in a process whose first part is this."""
    stages.ceilings, gpu_run.LEAST_PATIENCE_S, gpu_run.PATIENCE = broken, 2.0, 0  # type: ignore[misc, assignment]
    return measure(*given)


def killed_measure(*given: Any) -> GpuResult:
    return with_ceilings(killed, given)


def hanging_measure(*given: Any) -> GpuResult:
    return with_ceilings(hanging, given)


def losing_measure(*given: Any) -> GpuResult:
    return with_ceilings(losing, given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (killed_measure, "its process ended"),
        (hanging_measure, "its process ended"),
        (losing_measure, "an illegal memory access"),
    ],
)
def test_the_others_go_on(broken: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "measure", broken)
    result = read(supervise.supervise(tmp_path, True, 60.0, ONLY, "0123456789ab", False))
    assert result.provenance.commit == "0123456789ab"
    assert said in (result.ceilings.failed or "")
    assert result.stages["bf16"].measured is not None
    assert result.kernels == Part(), "what was not asked for was not started"


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    result = empty_result(DRY, CPU, "reference")
    result.ceilings.measured = Ceilings(1e9, {"bf16": 2e12}, "by hand")
    result.kernels.failed = "no"
    write(result, tmp_path / "a.json")
    assert read(tmp_path / "a.json") == result
