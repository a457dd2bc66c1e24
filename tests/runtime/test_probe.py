"""The choice for many rows: measured once, remembered, and never in the way when memory fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from edge_vla.bench import predictions
from edge_vla.quant import PackedWeight, Scheme, quantise
from edge_vla.runtime import store
from edge_vla.runtime.compiled import compiled
from edge_vla.runtime.kernels import KERNELS, pick, probe
from edge_vla.runtime.kernels.gemm import GemmInt8

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "_known", {})


def weight() -> PackedWeight:
    return quantise(torch.randn(128, 64, generator=torch.Generator().manual_seed(1)), Scheme.INT8, None)


def seconds(monkeypatch: pytest.MonkeyPatch, packed: float, wide: float) -> list[int]:
    calls = list[int]()

    def measured(*arguments: object) -> tuple[float, float]:
        calls.append(1)
        return packed, wide

    monkeypatch.setattr(probe, "_fastest", measured)
    return calls


@pytest.mark.parametrize(("packed", "wide", "name"), [(1.0, 2.0, "torch-int8pack"), (2.0, 1.0, "torch-int8pack/bf16")])
def test_the_faster_is_taken_and_measured_once(
    packed: float, wide: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = seconds(monkeypatch, packed, wide)
    assert {pick(weight(), BF16, CPU, rows=100).name for _ in range(3)} == {name}
    monkeypatch.setattr(probe, "_known", {})  # another process: the table on disk answers
    assert pick(weight(), BF16, CPU, rows=100).name == name
    assert len(calls) == 1
    pick(weight(), BF16, CPU, rows=200)
    assert len(calls) == 2


def test_few_rows_and_names_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = seconds(monkeypatch, 2.0, 1.0)
    assert pick(weight(), BF16, CPU).name == "torch-int8pack"
    assert pick(weight(), BF16, CPU, "torch-int8pack", 100).name == "torch-int8pack"
    assert pick(weight(), BF16, CPU, "torch-int8pack/bf16", 100).name == "torch-int8pack/bf16"
    assert not calls


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "\x00", '{"a": "b"}'])
def test_a_damaged_table_is_no_table(content: str, tmp_path: Path) -> None:
    store.user_cache().joinpath(probe.TABLE).write_text(content)
    assert probe.gemm_pays(GemmInt8, weight(), 100, CPU) in (True, False)
    assert store.remembered(probe.TABLE)


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert probe.gemm_pays(GemmInt8, weight(), 100, CPU) in (True, False)
    assert store.remembered(probe.TABLE) == {}


def test_code_is_not_loaded_from_where_others_may_write() -> None:
    store.user_cache().chmod(0o777)
    with pytest.raises(OSError, match="others"):
        store.user_cache()


def test_answers_kept_first_leave_the_place_fit_for_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_VLA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    (tmp_path / "answer").write_bytes(b"x")
    before = os.umask(0o002)
    try:
        predictions.keep("key", tmp_path / "answer")
    finally:
        os.umask(before)
    assert (store.user_cache() / "answers" / "key.npz").exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_c_that_does_not_compile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.c").write_text("this is no C")
    assert compiled("bad", [tmp_path / "bad.c"], [tmp_path / "bad.c"], ()) is None
    assert "torch's operators run instead" in caplog.text
    assert "error" in caplog.text


def test_the_table_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST", 5)
    for i in range(9):
        store.remember("table.json", f"key {i}", "value")
    assert list(store.remembered("table.json")) == [f"key {i}" for i in range(4, 9)]


def test_every_name_is_one_kernel() -> None:
    kernels = {kernel for kernels in KERNELS.values() for kernel in kernels if kernel.name != "reference"}
    assert len(kernels) == len({kernel.name for kernel in kernels})
