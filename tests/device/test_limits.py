"""Bytes and operations against figures worked out by hand, and limits against those of devices on paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from edge_vla import typed_json
from edge_vla.artifact import Artifact
from edge_vla.device.limits import Ceilings, Cost, Limits, StageLimit, costs, limits, measure, stored, uniform
from edge_vla.errors import UsageError
from edge_vla.model import VisionBackbone
from edge_vla.model.vision import Projector
from edge_vla.spec import OPENVLA_7B, TINY

PROMPT, DIMS = 32, 7  # 288 rows with the image
FULL = OPENVLA_7B.decoder.vocab_rows

# Dense peaks from data sheets, those of the H200 as measured.
DEVICES = {
    "H200": Ceilings(4300e9, {"bf16": 790e12}, "measured"),
    "H100": Ceilings(3350e9, {"bf16": 989e12}, "data sheet"),
    "RTX 4090": Ceilings(1008e9, {"bf16": 165.2e12}, "data sheet"),
    "AGX Orin": Ceilings(204.8e9, {"bf16": 42.5e12}, "technical brief"),
}


def of_7b(bits: int, head_rows: int | None = FULL) -> dict[str, Cost]:
    made = costs(OPENVLA_7B, uniform(OPENVLA_7B, bits), PROMPT, DIMS, head_rows=head_rows)
    return {cost.name: cost for cost in made}


def by_name(found: Limits) -> dict[str, StageLimit]:
    return {stage.name: stage for stage in found.stages}


def test_decoder_bytes_by_hand() -> None:
    """32 layers x (4 x 4096^2 + 3 x 4096 x 11008) weights."""
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert weights == pytest.approx(6.476e9, rel=1e-3)
    assert uniform(OPENVLA_7B, 16) == 2 * weights
    rows = 32 * (4 * 4096 + 2 * 11008 + 4096)  # one 16-bit scale an output
    assert uniform(OPENVLA_7B, 8) == weights + 2 * rows
    assert uniform(OPENVLA_7B, 4) == weights // 2 + weights // 128 * 2
    assert uniform(OPENVLA_7B, 4) == pytest.approx(3.34e9, rel=1e-3)
    assert uniform(OPENVLA_7B, 4, 32) == weights // 2 + weights // 32 * 2


def test_operations_by_hand() -> None:
    passes = of_7b(16)
    assert passes["towers"].operations + passes["projector"].operations == pytest.approx(0.405e12, rel=2e-3)
    assert passes["prefill"].operations == pytest.approx(3.75e12, rel=2e-3)
    assert passes["one step"].times == 6
    assert passes["head"].times == 7
    assert passes["head"].bytes == FULL * 4096 * 2
    cache = passes["one step"].bytes - uniform(OPENVLA_7B, 16)
    assert cache == pytest.approx(152e6, rel=0.01)
    assert passes["one step"].operations == pytest.approx(2 * 6.476e9, rel=0.02)


def test_vision_bytes_are_those_of_the_modules() -> None:
    with torch.device("meta"):
        towers, projector = VisionBackbone(OPENVLA_7B), Projector(OPENVLA_7B)
    for name, module in (("towers", towers), ("projector", projector)):
        exact = sum(2 * parameter.numel() for parameter in module.parameters())
        assert of_7b(16)[name].bytes == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("device", "bits", "total_ms"),
    [
        ("H200", 16, 23.9),
        ("H200", 8, 14.9),
        ("H200", 4, 10.5),
        ("H100", 16, 28.3),
        ("H100", 8, 16.6),
        ("H100", 4, 11.0),
        ("RTX 4090", 16, 105),
        ("RTX 4090", 8, 66),
        ("RTX 4090", 4, 47.5),
        ("AGX Orin", 16, 489),
        ("AGX Orin", 8, 300),
        ("AGX Orin", 4, 208),
    ],
)
def test_limits_of_devices_on_paper(device: str, bits: int, total_ms: float) -> None:
    """Totals that were worked out before with one head fewer, from rounded figures."""
    rows = limits(device, list(of_7b(bits).values()), DEVICES[device]).stages
    assert rows[-1].limit_ms == pytest.approx(total_ms, rel=0.012)


def test_the_parts_of_an_action_on_agx_orin() -> None:
    rows = by_name(limits("int4", list(of_7b(4).values()), DEVICES["AGX Orin"]))
    assert rows["vision"].limit_ms == pytest.approx(9.5, rel=0.01)
    assert rows["prefill"].limit_ms == pytest.approx(88.3, rel=0.01)
    assert rows["decode"].limit_ms == pytest.approx(110, rel=0.02)
    pruned = by_name(limits("int4", list(of_7b(4, None).values()), DEVICES["AGX Orin"]))
    saved = rows["decode"].limit_ms - pruned["decode"].limit_ms
    assert saved == pytest.approx(7 * (FULL - 256) * 4096 * 2 / 204.8e9 * 1e3)


def test_a_stage_waits_for_the_slower_of_its_bytes_and_its_arithmetic() -> None:
    passes = [Cost("a", "decode", 10, 1, 3), Cost("b", "decode", 1, 20), Cost("c", "vision", 5, 5)]
    got = limits("m", passes, Ceilings(1000, {"bf16": 1000}, "made up"), {"decode": 100, "vision": 10})
    rows = by_name(got)
    assert list(rows) == ["decode", "decode: a (3 times)", "decode: b", "vision", "whole action"]
    assert rows["decode"].limit_ms == 30 + 20
    assert (rows["decode"].bytes_ms, rows["decode"].operations_ms) == (31, 23)
    assert rows["decode"].share == 0.5
    assert rows["decode: b"].measured_ms is None
    assert (rows["whole action"].measured_ms, rows["whole action"].limit_ms) == (110, 55)


def test_what_is_not_known_is_null_or_an_error() -> None:
    passes = [Cost("a", "decode", 10, 1), Cost("c", "vision", 5, 5)]
    ceilings = Ceilings(1000, {"bf16": 1000}, "made up")
    whole = limits("m", passes, ceilings, {"decode": 100}).stages[-1]
    assert whole.measured_ms is None
    assert whole.share is None
    with pytest.raises(UsageError, match="no ceiling for fp8"):
        limits("m", [Cost("a", "decode", 1, 1, arithmetic="fp8")], ceilings)


def test_an_artifact_costs_what_its_files_hold(tiny_artifacts: Mapping[int, Path]) -> None:
    for bits, path in tiny_artifacts.items():
        artifact = Artifact(path)
        spec = artifact.manifest.config.spec
        held = sum(packed.bytes for linears, _ in artifact.layers() for packed in linears.values())
        assert stored(artifact.manifest.layers) == held
        assert uniform(spec, bits) == held


def test_of_two_measurements_the_undisturbed_rate_counts() -> None:
    first, second = Ceilings(3e9, {"bf16": 1e9, "int8": 2e9}, "once"), Ceilings(2e9, {"bf16": 4e9}, "again")
    better = first.or_better(second)
    assert (better.read_bytes_per_s, better.gemm_flops) == (3e9, {"bf16": 4e9, "int8": 2e9})


def test_this_machine_has_ceilings() -> None:
    ceilings = measure(TINY, torch.device("cpu"), buffer=8 << 20)
    assert ceilings.read_bytes_per_s > 1e8
    assert ceilings.gemm_flops["bf16"] > 0
    assert ceilings.gemm_flops["fp32"] > 0
    assert "best of 5" in ceilings.how
    made = limits("tiny", costs(TINY, uniform(TINY, 4), PROMPT, DIMS), ceilings, {"vision": 1.0})
    assert typed_json.from_json(Limits, json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.gpu
def test_a_gpu_has_ceilings() -> None:
    ceilings = measure(OPENVLA_7B, torch.device("cuda"))
    assert ceilings.read_bytes_per_s > 1e11
    assert ceilings.gemm_flops["bf16"] > ceilings.gemm_flops["fp32"]
