"""Gemv or gemm in a prefill: measured once, kept on disk, and no error where the disk fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_vla.quant import PackedWeight, Scheme, quantise
from edge_vla.runtime import store
from edge_vla.runtime.kernels import KERNELS, pick, probe
from edge_vla.runtime.kernels.gemm import GemmInt8

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "_known", {})


def weight() -> PackedWeight:
    return quantise(torch.randn(128, 64, generator=torch.Generator().manual_seed(1)), Scheme.INT8, None)


def seconds(monkeypatch: pytest.MonkeyPatch, gemv: float, gemm: float) -> list[int]:
    calls = list[int]()

    def measured(*arguments: object) -> tuple[float, float]:
        calls.append(1)
        return gemv, gemm

    monkeypatch.setattr(probe, "_fastest", measured)
    return calls


@pytest.mark.parametrize(("gemv", "gemm", "name"), [(1.0, 2.0, "torch-int8pack"), (2.0, 1.0, "torch-int8pack/bf16")])
def test_the_faster_product_is_chosen_and_measured_once(
    gemv: float, gemm: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = seconds(monkeypatch, gemv, gemm)
    assert {pick(weight(), BF16, CPU, rows=100).name for _ in range(3)} == {name}
    monkeypatch.setattr(probe, "_known", {})  # another process: the table on disk answers
    assert pick(weight(), BF16, CPU, rows=100).name == name
    assert len(calls) == 1
    pick(weight(), BF16, CPU, rows=200)
    assert len(calls) == 2


def test_neither_a_step_nor_a_named_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = seconds(monkeypatch, 2.0, 1.0)
    assert pick(weight(), BF16, CPU).name == "torch-int8pack"
    assert pick(weight(), BF16, CPU, "torch-int8pack", 100).name == "torch-int8pack"
    assert pick(weight(), BF16, CPU, "torch-int8pack/bf16", 100).name == "torch-int8pack/bf16"
    assert not calls


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "\x00", '{"a": "b"}'])
def test_a_damaged_table_counts_as_empty(content: str, tmp_path: Path) -> None:
    store.user_cache().joinpath(probe.TABLE).write_text(content)
    assert probe.gemm_pays(GemmInt8, weight(), 100, CPU) in (True, False)
    assert store.remembered(probe.TABLE)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert probe.gemm_pays(GemmInt8, weight(), 100, CPU) in (True, False)
    assert store.remembered(probe.TABLE) == {}


def test_every_name_is_one_kernel() -> None:
    kernels = {kernel for kernels in KERNELS.values() for kernel in kernels if kernel.name != "reference"}
    assert len(kernels) == len({kernel.name for kernel in kernels})
