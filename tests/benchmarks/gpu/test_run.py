"""`make bench-gpu` without a GPU: the dry run goes through every part, and what fails in one spoils no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks.gpu import __main__, stages, systems, targets
from benchmarks.gpu.forms import DRAFTED, DRAFTS_ON, FORMS, RIDING
from benchmarks.gpu.run import DRY, FULL, Run
from benchmarks.gpu.targets import BARS
from benchmarks.gpu.weights import seeded, write
from edge_vla.errors import BackendError, UsageError
from edge_vla.runtime.load import load
from edge_vla.spec import OPENVLA_7B, TINY
from tests.runtime.gpu.engines import CPU


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    path = __main__.bench(tmp_path_factory.mktemp("dry"), dry=True)
    assert path.name.startswith("dry-run-")
    read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def test_every_part_ends(dry: Mapping[str, Any]) -> None:
    assert dry["kind"] == "gpu"
    assert dry["dry_run"] is True
    assert not {name: part["failed"] for name, part in dry["parts"].items() if "failed" in part}
    assert {row["verdict"] for row in dry["table"]} == {"dry run"}, "what a CPU took says nothing of a GPU"
    assert dry["parts"]["kernels"]["passed"] == dry["parts"]["kernels"]["of"] > 40


def test_every_side_is_timed_or_says_why_not(dry: Mapping[str, Any]) -> None:
    parts = {name: part["sides"] for name, part in dry["parts"].items() if name.startswith("latency")}
    sides = {name: side for found in parts.values() for name, side in found.items()}
    assert set(sides) == {*FORMS, DRAFTED, RIDING, *systems.PEERS}
    for name in (*FORMS, DRAFTED, RIDING, "hf bf16, eager", "hf bf16, compiled"):
        assert sides[name]["actions"] == DRY.actions // (2 * DRY.rounds) * 2 * DRY.rounds
    assert sides["hf bf16, compiled"]["tokens"] == sides["hf bf16, eager"]["tokens"], "the same weights, the same loop"
    assert sides[DRAFTED]["tokens"] == sides[DRAFTS_ON]["tokens"], "a draft changes nothing"
    assert 1 <= sides[DRAFTED]["passes_mean"] <= DRY.dims - 1
    assert sides[RIDING]["passes_mean"] < sides[DRAFTED]["passes_mean"]
    for name, found in parts.items():
        assert "bf16" in found, f"{name}: the common side that lets parts be compared"
        assert RIDING in found or name != "latency", "in a prefill that rounds no rows"


def test_the_engine_answers_as_its_reference_does(dry: Mapping[str, Any]) -> None:
    """Here they are one and the same, so this tests the comparison."""
    for row in dry["parts"]["demo tokens"]["forms"]:
        assert (row["equal"], row["differ_above_the_noise"]) == (DRY.frames, 0)
    forms = {row["form"]: row for row in dry["parts"]["agreement"]["forms"]}
    assert all(row["tokens_equal_to_reference"] == 1 for row in forms.values())
    assert forms["bf16"]["tokens_equal_to_bf16"] == 1


def test_every_bar_finds_its_figure_in_a_result(dry: Mapping[str, Any]) -> None:
    """All but those that only a GPU or an absent package can give."""
    absent = {row["what"] for row in dry["table"] if row["value"] is None}
    assert absent <= {
        "int4, w4a8 prefill, against bitsandbytes NF4",
        "allocator peak int4",
        "allocator peak int8",
        "load peak int4 over its weights",
    }


def test_bars_are_met_missed_or_not_measured() -> None:
    ms = {"bf16": 31.0, "int4, w4a16 prefill": 16.0, "int4, w4a8 prefill": 14.5, "int8, w8a8 prefill": 22.0}
    parts = {
        "latency": {
            "sides": {name: {"p50_ms": value} for name, value in {**ms, DRAFTED: 9.5, RIDING: 8.0}.items()},
            "times_faster": {"int4, w4a8 prefill": {"bf16": {"ratio": 2.1}}},
        },
        "kernels": {"of": 50, "passed": 49},
    }
    rows = {row["what"]: row for row in targets.judge(parts)}
    assert len(rows) == len(BARS)
    assert rows["bf16"]["verdict"] == "met"
    assert rows["int8, the faster prefill"]["verdict"] == "missed"
    assert rows["int4, the fastest prefill"]["verdict"] == "met"
    assert rows["int4, the fastest prefill"]["named"] == "int4, w4a8 prefill"
    assert rows["int4 against our bf16"]["verdict"] == "met"
    assert rows["int4, int8 prefill and towers, drafts"]["verdict"] == "missed", "by the side whose bits drafts keep"
    assert rows["int4, w4a8 prefill, against bitsandbytes NF4"]["verdict"] == "not measured"
    assert rows["kernels further off than twice plain bf16"]["verdict"] == "missed"
    assert len(targets.lines(list(rows.values()))) == len(rows)


def test_a_part_that_fails_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: object) -> Mapping[str, Any]:
        raise ZeroDivisionError("nothing by nothing")

    monkeypatch.setattr(stages, "ceilings", broken)
    path = __main__.bench(tmp_path, dry=True, only=["ceilings", "stages: bf16"])
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert parts["ceilings"]["failed"] == "ZeroDivisionError: nothing by nothing"
    assert parts["stages: bf16"]["ms"]["action"] > 0
    assert parts["stages: bf16"]["stages"] == {}, "without ceilings there is no share of them"


def test_what_would_not_fit_in_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "parts", lambda run: {"long": (lambda: {"never": 1}, 100.0)})
    monkeypatch.setattr(Run, "part", _without_patience(Run.part))
    part = json.loads(__main__.bench(tmp_path, dry=True, budget_s=50).read_text(encoding="utf-8"))["parts"]["long"]
    assert "it takes about 100" in part["failed"]


def _without_patience(part: Any) -> Any:
    return lambda run, name, measure, least_s: part(run, name, measure, 100.0)


def test_what_is_ours_fits_into_one_run_and_slow_peers_into_another() -> None:
    least = {name: seconds for name, (_, seconds) in __main__.parts(cast(Run, None)).items()}
    peers = {name: seconds for name, seconds in least.items() if name.startswith("latency beside")}
    assert sum(peers.values()) <= __main__.BUDGET_S
    assert sum(least.values()) - sum(peers.values()) <= __main__.BUDGET_S


def test_a_run_overwrites_no_other(tmp_path: Path) -> None:
    taken = tmp_path / "2026-11-21-nvidia-h200-0123456789ab.json"
    for expected in ("", "-2", "-3"):
        path = __main__.unused(taken)
        assert path == tmp_path / f"{taken.stem}{expected}.json"
        path.touch()


def test_a_dry_run_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run", "--out", "benchmarks/results"])
    with pytest.raises(UsageError, match="does not belong in benchmarks/results"):
        __main__.main()
    with pytest.raises(UsageError, match="--only nonsense: choose among"):
        __main__.bench(tmp_path, dry=True, only=["nonsense"])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(BackendError, match="torch sees no CUDA device"):
        __main__.bench(tmp_path, dry=False)


def test_seeded_weights_are_the_same_each_time_and_load_as_any_artifact(tmp_path: Path) -> None:
    names = ["language_model.model.layers.0.mlp.up_proj.weight", "projector.fc1.bias"]
    first, again = seeded("openvla-tiny", CPU), seeded("openvla-tiny", CPU)
    assert all(torch.equal(first.tensors.load(name), again.tensors.load(name)) for name in names)
    write(tmp_path / "a", first, 4, 8, CPU)
    action = load(tmp_path / "a", "cpu", check=False).act(torch.zeros(28, 28, 3, dtype=torch.uint8).numpy(), "go")
    assert len(action.tokens) == DRY.dims


def test_the_prompt_is_that_of_the_bars() -> None:
    """288 rows: the picture's patches and 32 tokens; the dry run's fits its network."""
    assert OPENVLA_7B.patches + FULL.text == 288
    assert TINY.patches + DRY.text < TINY.decoder.max_positions
