"""The engine study on networks of toy size: what is scaled, what is a target, what a peer needs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu import engine, tables
from benchmarks.cpu.engine import Settings, Stages, Times
from benchmarks.cpu.llamacpp import LlamaCpp
from benchmarks.cpu.results import EAGER, LLAMA_CPP, PACKED
from edge_vla.device import limits
from edge_vla.errors import BackendError
from edge_vla.spec import TINY

CEILINGS = limits.Ceilings(1e9, {"bf16": 1e9}, "made up")
TOY = Settings("random:openvla-tiny", prompt_rows=TINY.patches + 20, rounds=2, buffer_bytes=1 << 20)


def toy(**changes: Any) -> Settings:
    return replace(TOY, **changes)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_fewer_layers_are_multiplied_up(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two layers measured: the network's time is twice what the clock said, and the result says so."""
    monkeypatch.setattr(limits, "measure", lambda *arguments: CEILINGS)
    clock = {(PACKED, "prefill"): [4.0, 6.0, 5.0], (PACKED, "step"): [1.0, 1.0, 2.0], (PACKED, "verify"): [1.5],
             (EAGER, "prefill"): [10.0], (EAGER, "step"): [3.0]}  # fmt: skip

    def turns(stages: Stages, rounds: int) -> Times:
        return {name: clock[name] for name in stages}

    result = engine.measure(toy(bits=bits, layers=1, reference_layers=2), turns)
    ours, eager = result.system(PACKED), result.system(EAGER)
    assert ours is not None
    assert eager is not None
    assert (ours.layers_measured, eager.layers_measured, result.layers) == (1, 2, 2)
    assert (ours.median.prefill_ms, ours.median.step_ms, ours.median.verify_ms) == (10, 2, 3)
    assert (ours.decoder_ms, ours.accepted_draft_ms, eager.decoder_ms) == (22, 13, 28)
    targets = {target.name: target for target in result.targets}
    assert targets["step, times faster than eager"].measured == 1.5
    cost = next(cost for cost in limits.costs(TINY, limits.uniform(TINY, bits), 20, 7) if cost.name == "one step")
    assert result.step_limit_ms == pytest.approx(cost.bytes / 1e6, abs=0.01)
    assert targets["step, share of read bandwidth"].measured == pytest.approx(result.step_limit_ms / 2, abs=1e-3)


def test_a_whole_run_holds_every_target() -> None:
    result = engine.measure(toy(reference_layers=1, vision=True))
    assert set(result.kernels) == {"int4"}
    ours, eager = result.system(PACKED), result.system(EAGER)
    assert ours is not None
    assert eager is not None
    assert eager.vision_ms is not None
    assert eager.action_ms == pytest.approx(eager.vision_ms + eager.decoder_ms, abs=0.1)
    assert [target.name for target in result.targets] == [
        "step, share of read bandwidth",
        "prefill, share of bf16 rate",
        "step, times faster than eager",
        "whole action, times faster than eager",
    ]
    lines = list(tables.engine(result, 1))
    assert sum(line.endswith((" met |", " missed |")) for line in lines) == len(result.targets)
    assert f"| {eager.action_ms:.1f} |" in next(line for line in lines if line.startswith("| eager |"))


def test_kernels_that_round_activations_are_held_to_the_rate_of_integers() -> None:
    result = engine.measure(toy(bits=8, kernel="torch-int8pack/int8", reference_layers=0, rounds=1))
    assert result.arithmetic == "int8"
    assert result.targets[1].name == "prefill, share of int8 rate"


@pytest.fixture
def llamacpp() -> str:
    """A Python that has llama.cpp: the one named by LLAMACPP_PYTHON, or this one."""
    python = os.environ.get("LLAMACPP_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True, check=False).returncode:
        pytest.skip("pip install llama-cpp-python gguf, or name a Python that has them in LLAMACPP_PYTHON")
    return python


def test_beside_llama_cpp(llamacpp: str) -> None:
    result = engine.measure(toy(reference_layers=0, llamacpp=llamacpp))
    ours, peer, facts = result.system(PACKED), result.system(LLAMA_CPP), result.llama_cpp
    assert ours is not None
    assert peer is not None
    assert facts is not None
    assert result.targets[-1].measured == pytest.approx(peer.decoder_ms / ours.decoder_ms, rel=0.2)
    weights = TINY.decoder.layers * sum(rows * columns for rows, columns in TINY.decoder.linears().values())
    assert facts.bytes - facts.head_bytes == weights * 18 // 32


def test_a_python_without_llama_cpp(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "raise ModuleNotFoundError(\'No llama_cpp\')"\n')
    python.chmod(0o755)
    with pytest.raises(BackendError, match="pip install llama-cpp-python gguf"):
        LlamaCpp(str(python), TINY.decoder, 20, 1)


def test_turns_go_forward_and_back() -> None:
    calls = list[str]()
    stages = {(name, "step"): (lambda name=name: calls.append(name), 1) for name in "ab"}
    times = engine.in_turns(stages, 2)
    assert "".join(calls) == "aabbbbaa", "the first call of each row warms up"
    assert {name: len(ms) for (name, _), ms in times.items()} == {"a": 2, "b": 2}
