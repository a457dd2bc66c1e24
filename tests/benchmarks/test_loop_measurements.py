"""The loop's measurement modules: what they count and how they divide, on networks of toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import edge_vla
from benchmarks.cpu import engine, soak, tables
from benchmarks.cpu.llamacpp import LlamaCpp
from edge_vla.bench.stage_profile import profile, waterfall
from edge_vla.data import synthetic_image
from edge_vla.device import limits
from edge_vla.errors import BackendError
from edge_vla.runtime.kernels import AUTO
from edge_vla.spec import TINY

CEILINGS = limits.Ceilings(1e9, {"bf16": 1e9}, "made up")


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_fewer_layers_are_multiplied_up(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two layers measured: the whole network's time is twice what the clock said, and the result says so."""
    monkeypatch.setattr(limits, "measure", lambda *arguments: CEILINGS)
    times = {"prefill": [4.0, 6.0, 5.0], "step": [1.0, 1.0, 2.0], "verify": [1.5],
             "eager prefill": [10.0], "eager step": [3.0]}  # fmt: skip
    monkeypatch.setattr(engine, "in_turns", lambda stages, rounds: {name: times[name] for name in stages})
    result = engine.compare(TINY, bits, AUTO, 1, 2, TINY.patches + 20, 7, 1)
    assert result["layers measured"] == {"packed": 1, "eager": 2, "of": 2}
    assert result["milliseconds, median"] == {
        "prefill": 10, "step": 2, "verify": 3, "eager prefill": 10, "eager step": 3,
    }  # fmt: skip
    assert result["decoder part of an action, ms"] == {
        "packed": 22, "packed, a draft that is right": 13, "eager": 28,
    }  # fmt: skip
    assert result["times faster than eager"]["step"] == 1.5
    cost = next(cost for cost in limits.costs(TINY, limits.uniform(TINY, bits), 20, 7) if cost.name == "one step")
    assert result["predicted ms"]["step, bytes alone"] == pytest.approx(cost.bytes / 1e6, abs=0.01)
    assert result["step, share of read bandwidth"]["median"] == pytest.approx(cost.bytes / 1e6 / 2, abs=0.001)


def test_a_whole_run_at_toy_size() -> None:
    result = engine.compare(TINY, 4, AUTO, 2, 1, TINY.patches + 20, 7, 2, buffer=1 << 20)
    assert set(result["kernels"]) == {"int4"}
    assert all(milliseconds > 0 for milliseconds in result["milliseconds, best"].values())


def test_what_was_to_be_reached_stands_beside_what_was() -> None:
    result = engine.compare(TINY, 4, AUTO, 2, 1, TINY.patches + 20, 7, 1, buffer=1 << 20, vision=True)
    actions, seen = result["whole action, ms"], result["vision, ms, median"]
    assert actions["eager"] == pytest.approx(seen["eager vision"] + result["decoder part of an action, ms"]["eager"])
    assert [claim["what"] for claim in result["claims"]] == [
        "step, share of read bandwidth",
        "prefill, share of bf16 rate",
        "step, times faster than eager",
        "whole action, times faster than eager",
    ]
    for claim in result["claims"]:
        assert claim["holds"] == (claim["value"] >= claim["at least"])
    document = {**result, "kind": "engine", "model": "random", "bits": 4, "environment": {"threads": 1}}
    table = list(tables.engine(document))
    assert sum(line.endswith((" yes |", " no |")) for line in table) == len(result["claims"])
    assert f"| {actions['eager']:.1f} |" in next(line for line in table if line.startswith("| eager |"))
    assert result["claims"][3]["value"] == pytest.approx(actions["eager"] / actions["packed"], abs=1e-3)


def test_kernels_that_round_activations_are_held_to_the_rate_of_integers() -> None:
    result = engine.compare(TINY, 8, "torch-int8pack/int8", 1, 0, TINY.patches + 20, 7, 1, buffer=1 << 20)
    assert "prefill, share of int8 rate" in result


@pytest.fixture
def llamacpp() -> str:
    """A Python that has llama.cpp: the one named by LLAMACPP_PYTHON, or this one."""
    python = os.environ.get("LLAMACPP_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True, check=False).returncode:
        pytest.skip("pip install llama-cpp-python gguf, or name a Python that has them in LLAMACPP_PYTHON")
    return python


def test_beside_llama_cpp(llamacpp: str) -> None:
    result = engine.compare(TINY, 4, AUTO, 2, 0, TINY.patches + 20, 7, 2, buffer=1 << 20, llamacpp=llamacpp)
    parts = result["decoder part of an action, ms"]
    assert result["claims"][-1]["value"] == pytest.approx(parts["llama.cpp"] / parts["packed"], rel=0.2)
    weights = TINY.decoder.layers * sum(outer * inner for outer, inner in TINY.decoder.linears().values())
    about = result["llama.cpp"]
    assert about["bytes"] - about["head_bytes"] == weights * 18 // 32


def test_a_python_without_llama_cpp(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="pip install llama-cpp-python gguf"):
        LlamaCpp(str(_bare_python(tmp_path)), TINY.decoder, 20, 1)


def _bare_python(directory: Path) -> Path:
    """An interpreter that finds numpy and nothing else of ours."""
    script = directory / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "raise ModuleNotFoundError(\'No llama_cpp\')"\n')
    script.chmod(0o755)
    return script


def test_turns_go_there_and_back() -> None:
    calls = list[str]()
    stages = {name: (lambda name=name: calls.append(name), 1) for name in "ab"}
    taken = engine.in_turns(stages, 2)
    assert "".join(calls) == "aabbbbaa", "the first call of each row warms up"
    assert {name: len(ms) for name, ms in taken.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(("growth", "expected"), [(0, 0.0), (1 << 20, 10.0), (-(1 << 19), -5.0)])
def test_the_slope_of_memory(growth: int, expected: float) -> None:
    """`growth` bytes every 100 actions; readings while pools still fill are left out."""
    resident = [5 << 30] * 3 + [(1 << 30) + growth * i for i in range(50)]
    assert soak.slope(resident, 3) == pytest.approx(expected)
    assert soak.slope(resident[:4], 3) == 0.0


def test_memory_that_torch_takes_is_seen() -> None:
    """An operator's own output too, which makes no `aten::empty`."""
    ones, out, frames = torch.ones(8), torch.ones(8), [soak.Shown(Image.new("RGB", (2, 2)), "x", True)] * 5

    def taking(_: soak.Shown) -> int:
        return len(ones * 2)

    def taking_none(_: soak.Shown) -> int:
        return len(torch.mul(ones, ones, out=out))

    assert soak.allocations(taking, frames)["tensors made per action"] >= 1
    assert soak.allocations(taking_none, frames)["tensors made per action"] == 0


def test_a_steady_state_is_held_to_its_bars() -> None:
    row = soak.spread([1.0] * 100)
    result: dict[str, Any] = {
        "kind": "steady",
        "kernels": {"int4": "native"},
        "compared in turns": {"reference": row, soak.SESSION: row, soak.COUNTING: row},
        "times faster than the reference, by p50": {"reference": 1.0, soak.SESSION: 4.0},
        "alone": {**row, "MiB per 1000 actions": 1.5, "tensors made per action": 2.0, "bytes kept per action": 0.0},
    }
    result["claims"] = list(soak.claims(result))
    assert [claim["holds"] for claim in result["claims"]] == [True, True, True, False, False, True]
    table = "\n".join(tables.steady(result))
    assert "| MiB of memory per 1000 actions | 1.5 | at most 1 | no |" in table
    assert f"| {soak.COUNTING} | 100 | 1.00 ms | 1.00 ms | 1.00 |  |" in table
    assert f"| {soak.SESSION} | 100 | 1.00 ms | 1.00 ms | 1.00 | 4.00 |" in table


def test_the_spread_of_times() -> None:
    row = soak.spread([float(i) for i in range(1, 101)])
    assert (row["p50_ms"], row["actions"]) == (50.5, 100)
    assert row["p99/p50"] == pytest.approx(99.01 / 50.5, abs=1e-3)


def test_blocks_of_the_sides_alternate_and_all_see_the_same_frames() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    order = list[str]()

    def side(name: str) -> object:
        def act(shown: object) -> int:
            seen[name].append(id(shown))
            order.append(name)
            return 0

        return act

    frames = [soak.Shown(synthetic_image(seed, 8), "go", seed == 0) for seed in range(3)]
    taken = soak.turns({name: side(name) for name in seen}, frames, 2 * soak.BLOCK)  # type: ignore[misc]
    assert [len(times) for times in taken.values()] == [2 * soak.BLOCK] * 2
    assert seen["a"] == seen["b"]
    assert list(islice(order, 0, None, soak.BLOCK)) == ["a", "b", "b", "a"]


def test_the_waterfall_of_an_action(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[4], "cpu", check=False)
    result = profile(policy, synthetic_image(0, 28), "open the drawer", actions=3, ceilings=CEILINGS)
    shares = {row["name"]: row["share"] for row in result["limits"]["stages"]}
    assert {"vision", "prefill", "decode"} <= {name for name, share in shares.items() if share}
    lines = waterfall(result).splitlines()
    assert [line.split()[0] for line in lines[:6]] == [
        "preprocess", "wait", "vision", "prefill", "decode", "detokenise",
    ]  # fmt: skip
    assert "MB" in lines[2]
    assert "of its limit" in lines[3]
    assert any("aten::" in line for line in lines)
