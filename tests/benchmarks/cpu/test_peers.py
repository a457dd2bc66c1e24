"""The study beside other libraries at toy size: names, scaling, and that every product is the right one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cpu import linears, peers, tables
from benchmarks.cpu.linears import ORT, LinearPeers, Weight
from benchmarks.cpu.peers import Settings
from benchmarks.cpu.results import CpuPeersResult, DecoderTimes, ProductTimes
from edge_vla.device import limits
from edge_vla.errors import BackendError
from edge_vla.runtime.cpu.native.library import chosen
from edge_vla.spec import TINY

BEST = chosen()
NEEDS_C = pytest.mark.skipif(BEST is None, reason="no C engine here")
CEILINGS = limits.Ceilings(1e9, {"bf16": 1e9}, "made up")
ASKED = {"n": 192, "k": 256, "group": 128, "threads": 1}


def settings(python: str | None = None) -> Settings:
    kernels = [f"{name}@{BEST.name}" for name in ("native", "native/int8")] if BEST else []
    spec = replace(TINY, decoder=replace(TINY.decoder, width=256, mlp_width=512))
    return Settings(kernels, {}, python, 1, TINY.patches + 20, rounds=2, spec=spec, buffer_bytes=1 << 20)


@NEEDS_C
def test_every_kernel_has_its_row_scaled_to_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measure", lambda *arguments: CEILINGS)
    clock = {"prefill": [4.0, 6.0, 5.0], "step": [1.0, 1.0, 2.0]}
    monkeypatch.setattr(
        peers, "in_turns", lambda stages, rounds: {(name, stage): clock[stage] for name, stage in stages}
    )
    result = peers.measure(settings())
    assert [decoder.name for decoder in result.decoders] == settings().kernels
    ours = result.decoders[0]
    assert (result.layers, result.layers_measured) == (2, 1)
    assert (ours.prefill_ms, ours.step_ms, ours.best_prefill_ms, ours.decoder_ms) == (10, 2, 8, 22)


@NEEDS_C
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="no onnxruntime here")
def test_every_product_is_the_same_product() -> None:
    """All are near float64's: codes, scales and groups mean the same to each library. Rounded rows err by a percent."""
    result = peers.measure(settings(sys.executable))
    errors: Mapping[tuple[str, int], float] = {(one.name, one.rows): one.relative_error for one in result.products}
    assert {name for name, _ in errors} >= {ORT, *settings().kernels}
    assert {rows for _, rows in errors} == set(peers.ROWS)
    assert all(0 < error < 0.02 for error in errors.values()), errors
    assert ORT in result.versions


def test_codes_and_scales_make_the_dense_weight() -> None:
    weight = Weight(2, 256, 128)
    low, high = weight.nibbles & 15, weight.nibbles >> 4
    codes = np.stack([low, high], axis=-1).reshape(2, 256).astype(np.int8)
    codes[codes > 7] -= 16
    assert np.array_equal(codes, weight.codes)
    assert weight.dense[1, 200] == weight.codes[1, 200] * weight.scales[1, 1]


def test_a_python_without_the_libraries(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "raise ModuleNotFoundError(\'no numpy\')"\n')
    python.chmod(0o755)
    with pytest.raises(BackendError, match="pip install openvino onnxruntime onnx"):
        LinearPeers(str(python), ASKED)


def test_libraries_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match="no library to compare with"):
        linears.made(Weight(2, 256, 128), 1)


def test_the_table_says_how_many_times_faster() -> None:
    slow, fast = (
        DecoderTimes("llama.cpp avx2", 300.0, 20.0, 290.0, 19.0, 420.0),
        DecoderTimes("native@avx2", 100.0, 10.0, 99.0, 9.0, 160.0),
    )
    products = [ProductTimes("native@avx2", 1, 1.0, 0.01), ProductTimes("OpenVINO", 1, 2.0, 0.001)]
    result = CpuPeersResult("toy", 288, 6, 32, 4, [], CEILINGS, [fast, slow], {}, "8 x 8", products, {})
    lines = list(tables.peers(result))
    assert "| native@avx2 | 100 | 10.0 | 160 | 3.00, 2.00 |" in lines
    assert "| llama.cpp avx2 | 300 | 20.0 | 420 | 1.00, 1.00 |" in lines
    assert "| OpenVINO | 2.00 | 0.001 |" in lines
