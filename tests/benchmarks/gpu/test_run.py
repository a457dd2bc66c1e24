"""`make bench-gpu` without a GPU: the dry run goes through every part, and a failure in one part spoils no other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__, stages, targets
from benchmarks.gpu import plan as gpu_plan
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, DRAFT_IN_PREFILL, DRAFTED, W4A8, W4A16, W8A8
from benchmarks.gpu.peers import COMPILED, EAGER, PEERS
from benchmarks.gpu.result import (
    Comparison,
    DemoRow,
    DemoTokens,
    GpuResult,
    KernelRow,
    KernelTable,
    LatencyTable,
    Part,
    SystemRow,
    Times,
)
from benchmarks.gpu.result import write as write_result
from benchmarks.gpu.run import DRY, FULL, PlannedPart, Run
from benchmarks.gpu.weights import seeded, write
from edge_vla.bench.result import SpeedRatio
from edge_vla.errors import BackendError, UsageError
from edge_vla.runtime import load
from edge_vla.spec import OPENVLA_7B, TINY
from tests.runtime.gpu.engines import CPU

pytestmark = pytest.mark.slow  # a whole dry run of the benchmark

Json = Any  # a result as it is on disk


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Json:
    path = gpu_plan.bench(tmp_path_factory.mktemp("dry"), dry=True)
    assert path.name.startswith("dry-run-")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def result() -> GpuResult:
    """Of a run that has measured nothing yet."""
    return replace(gpu_plan.empty_result(FULL, CPU, "reference"), dry_run=False)


def parts_of(result: Json) -> Iterator[tuple[str, Json]]:
    for name in ("ceilings", "compilation", "kernels", "decode_steps", "demo_tokens", "agreement"):
        yield name, result[name]
    for group in ("memory", "latency", "stages", "traces"):
        yield from ((f"{group} {name}", part) for name, part in result[group].items())


def test_every_part_ends(dry: Json) -> None:
    assert (dry["kind"], dry["version"], dry["dry_run"]) == ("gpu", 1, True)
    assert not {name: part["failed"] for name, part in parts_of(dry) if part["failed"] is not None}
    assert all(part["measured"] is not None and part["seconds"] is not None for _, part in parts_of(dry))
    assert {row["verdict"] for row in dry["targets"]} == {"dry run"}, "a CPU's times say nothing of a GPU's"
    kernels = dry["kernels"]["measured"]["rows"]
    assert len(kernels) > 40
    assert all(row["passed"] for row in kernels)


def test_every_system_is_timed_or_says_why_not(dry: Json) -> None:
    tables = {name: part["measured"] for name, part in dry["latency"].items()}
    rows = {row["name"]: row for table in tables.values() for row in table["systems"]}
    ours = {*(one.name for one in CONFIGURATIONS), DRAFTED, DRAFT_IN_PREFILL}
    assert set(rows) == {*ours, *PEERS}
    assert all((row["times"] is None) != (row["failed"] is None) for row in rows.values())
    for name in (*ours, EAGER, COMPILED):
        assert rows[name]["times"]["actions"] == DRY.actions // (2 * DRY.rounds) * 2 * DRY.rounds
    assert rows[COMPILED]["tokens"] == rows[EAGER]["tokens"], "the same weights, the same loop"
    assert rows[DRAFTED]["tokens"] == rows[W4A8.name]["tokens"], "a draft changes no token"
    passes = {name: rows[name]["times"]["passes_mean"] for name in (DRAFTED, DRAFT_IN_PREFILL)}
    assert 1 <= passes[DRAFTED] <= DRY.dims - 1
    assert passes[DRAFT_IN_PREFILL] < passes[DRAFTED]
    for name, table in tables.items():
        assert BF16.name in [row["name"] for row in table["systems"]], f"{name}: the system that all tables share"


def test_the_engine_decides_as_its_reference_does(dry: Json) -> None:
    """In a dry run they are one and the same, so this tests the comparison."""
    for row in dry["demo_tokens"]["measured"]["rows"]:
        assert (row["equal_frames"], row["high_margin_flips"]) == (DRY.frames, 0)
    rows = {row["configuration"]: row for row in dry["agreement"]["measured"]["rows"]}
    assert all(row["equal_to_reference"] == 1 for row in rows.values())
    assert rows[BF16.name]["equal_to_bf16"] == 1


def test_steps_are_compared_both_ways(dry: Json) -> None:
    """In a dry run by the references, which round alike both ways."""
    for row in dry["decode_steps"]["measured"]["rows"]:
        assert (row["failed"], row["chosen"], row["equal"]) == (None, "one launch", DRY.pictures)
        assert min(row[time] for time in ("one_launch_ms", "chain_ms", "action_one_launch_ms", "action_chain_ms")) > 0


def test_every_target_finds_its_figure(dry: Json) -> None:
    """All but those that only a GPU or an absent package can give."""
    absent = {row["what"] for row in dry["targets"] if row["value"] is None}
    assert absent <= {
        "w4a8 against bitsandbytes NF4",
        "allocator peak int4",
        "allocator peak int8",
        "load peak int4 over its weights",
    }


def timed(name: str, p50_ms: float) -> SystemRow:
    return SystemRow(name, times=Times(8, p50_ms, (p50_ms, p50_ms), p50_ms, p50_ms, None, [[p50_ms]]))


def test_targets_are_met_missed_or_not_measured(result: GpuResult) -> None:
    p50_ms = {BF16: 31.0, W4A16: 16.0, W4A8: 14.5, W8A8: 22.0}
    systems = [timed(one.name, ms) for one, ms in p50_ms.items()] + [timed(DRAFTED, 9.5), timed(DRAFT_IN_PREFILL, 8.0)]
    faster = Comparison(W4A8.name, BF16.name, SpeedRatio(ratio=2.1, low=None, high=None, blocks=1))
    result.latency[gpu_plan.OURS].measured = LatencyTable(288, 7, systems, [faster], {})
    kernels = [KernelRow("one", "one", passed=True), KernelRow("two", "two", passed=False)]
    result.kernels.measured = KernelTable("triton", kernels)
    rows = {row.what: row for row in targets.evaluate(result)}
    assert rows["bf16"].verdict == "met"
    assert rows["int8, faster prefill"].verdict == "missed"
    assert (rows["int4, faster prefill"].verdict, rows["int4, faster prefill"].system) == ("met", W4A8.name)
    assert rows["int4 against our bf16"].verdict == "met"
    assert rows["w4a8, drafts"].verdict == "missed", "the system whose drafts are bitwise exact"
    assert rows["w4a8 against bitsandbytes NF4"].verdict == "not measured"
    assert rows["kernels with more than twice plain bf16's error"].value == 1
    assert rows["demo policy: high-margin flips"].verdict == "not measured"
    assert len(targets.lines(list(rows.values()))) == len(targets.TARGETS)


def test_a_configuration_that_failed_leaves_its_target_unmeasured(result: GpuResult) -> None:
    rows = [DemoRow("one", equal_frames=8, high_margin_flips=0), DemoRow("two", failed="no")]
    result.demo_tokens.measured = DemoTokens(8, 0.1, rows)
    assert targets.high_margin_flips(result) is None
    result.demo_tokens.measured = DemoTokens(8, 0.1, rows[:1])
    assert targets.high_margin_flips(result) == 0


def test_numbers_that_are_not_finite_are_written_as_null(result: GpuResult, tmp_path: Path) -> None:
    rows = [KernelRow("one", "one", passed=False, error=math.nan, allowed=math.inf)]
    result.kernels.measured = KernelTable("triton", rows)
    write_result(result, tmp_path / "a.json")
    row = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["kernels"]["measured"]["rows"][0]
    assert (row["error"], row["allowed"]) == (None, None)


def test_a_part_that_fails_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: object) -> None:
        raise ZeroDivisionError("nothing by nothing")

    monkeypatch.setattr(stages, "ceilings", broken)
    path = gpu_plan.bench(tmp_path, dry=True, only=["ceilings", "stages bf16"])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["ceilings"]["failed"] == "ZeroDivisionError: nothing by nothing"
    table = result["stages"]["bf16"]["measured"]
    assert table["piece_ms"]["action"] > 0
    assert table["rows"] is None, "without ceilings there is no share of them"


def test_a_part_that_exceeds_the_budget_is_not_started(result: GpuResult, tmp_path: Path) -> None:
    run = Run(tmp_path / "a.json", DRY, CPU, "reference", seeded(DRY.model, CPU), tmp_path, 50.0, result)
    short, long = Part[int](), Part[int]()
    run.fill(PlannedPart("short", 40.0, short, lambda run: 1))
    run.fill(PlannedPart("long", 100.0, long, lambda run: 1))
    assert (short.measured, short.failed) == (1, None)
    assert long.measured is None
    assert long.failed is not None
    assert "it takes about 100 s" in long.failed


def test_our_parts_fit_into_one_run_and_slow_peers_into_another(result: GpuResult) -> None:
    expected_s = {planned.name: planned.expected_s for planned in gpu_plan.plan(result)}
    peers = {name: seconds for name, seconds in expected_s.items() if name.startswith("latency beside")}
    assert len(peers) == 2
    assert sum(peers.values()) <= gpu_plan.BUDGET_S
    assert sum(expected_s.values()) - sum(peers.values()) <= gpu_plan.BUDGET_S


def test_a_run_overwrites_no_other(tmp_path: Path) -> None:
    taken = tmp_path / "2026-11-21-nvidia-h200-0123456789ab.json"
    for expected in ("", "-2", "-3"):
        path = gpu_plan.unused(taken)
        assert path == tmp_path / f"{taken.stem}{expected}.json"
        path.touch()


def test_a_dry_run_is_not_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run", "--out", "benchmarks/results"])
    with pytest.raises(UsageError, match=r"--dry-run measures nothing.*choose another --out"):
        __main__.main()
    with pytest.raises(UsageError, match="--only nonsense: choose among"):
        gpu_plan.bench(tmp_path, dry=True, only=["nonsense"])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="torch sees no CUDA device"):
        gpu_plan.bench(tmp_path, dry=False)


def test_seeded_weights_are_reproducible_and_load_as_any_artifact(tmp_path: Path) -> None:
    names = ["language_model.model.layers.0.mlp.up_proj.weight", "projector.fc1.bias"]
    first, again = seeded("openvla-tiny", CPU), seeded("openvla-tiny", CPU)
    assert all(torch.equal(first.tensors.load(name), again.tensors.load(name)) for name in names)
    write(tmp_path / "a", first, 4, 8, CPU)
    action = load(tmp_path / "a", "cpu", check=False).act(torch.zeros(28, 28, 3, dtype=torch.uint8).numpy(), "go")
    assert len(action.tokens) == DRY.dims


def test_the_prompt_is_the_one_of_the_targets() -> None:
    """288 rows: the picture's patches and 32 tokens; the dry run's fit its network."""
    assert OPENVLA_7B.patches + FULL.prompt == 288
    assert TINY.patches + DRY.prompt < TINY.decoder.max_positions
