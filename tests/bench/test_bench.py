"""The whole comparison on a tiny policy: real processes, one result, reports that quote it, failures that are rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.bench import predictions, reports
from edge_vla.bench.plan import Plan, Reference
from edge_vla.bench.run import bench
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import FrameError, UsageError
from edge_vla.files import write_whole
from tests.conftest import TINY


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_VLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tiny_artifacts: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One bench of 4 and 16 bits with a peer that runs and one whose environment lacks what it needs."""
    root = tmp_path_factory.mktemp("bench")
    copies = [Path(shutil.copytree(tiny_artifacts[bits], root / name)) for bits, name in ((4, "int4"), (16, "whole"))]
    peers = (("hf-bf16", None), ("bnb-nf4", "/bin/false"))
    plan = Plan(profile="few", peers=peers, floors=("rounding shaken",), waterfall=True)
    return bench(copies, Reference(TINY, limit=12), root / "out", plan), root


def candidate(result: Mapping[str, Any], name: str) -> Any:
    return next(row for row in result["candidates"] if row["name"] == name)


def test_16_bits_agree_where_the_reference_leads(run: tuple[dict[str, Any], Path]) -> None:
    agreement = candidate(run[0], "whole")["agreement"]
    assert agreement["teacher_forced"]["mean"] >= run[0]["floors"]["rounding shaken"]["teacher_forced"]["mean"]
    assert agreement["margins"]["high_margin"]["flips"] == 0
    assert agreement["margins"]["high_margin"]["positions"] > 0, "an empty set proves nothing"
    assert agreement["units_off"] == 0


def test_int4_differs_and_the_floor_stands_beside(run: tuple[dict[str, Any], Path]) -> None:
    result, _ = run
    int4, floor = candidate(result, "int4")["agreement"], result["floors"]["rounding shaken"]
    assert int4["teacher_forced"]["mean"] < floor["teacher_forced"]["mean"] <= 1
    assert result["frames"] | {"sha256": "", "by_phase": {}} == {
        "source": "synthetic",
        "name": "synthetic",
        "count": 12,
        "episodes": 12,
        "sha256": "",
        "by_phase": {},
    }


def test_speed_and_memory_of_every_side(run: tuple[dict[str, Any], Path]) -> None:
    result, root = run
    sides = [candidate(result, "int4"), candidate(result, "whole"), result["reference_measured"]]
    for side in sides:
        times = side["latency"]["back to back"]
        assert times["p50_ms"] > 0
        assert times["p90_ms"] is None, "a dozen queries cannot carry a 90th percentile"
        assert (root / "out" / times["samples"]).is_file()
        assert side["memory"]["peak_bytes"] >= side["memory"]["steady_bytes"] > 0
        assert side["timed_tokens"]["different"] == 0 < side["timed_tokens"]["queries"]
    assert sides[0]["memory"]["weights"]["decoder"] < sides[1]["memory"]["weights"]["decoder"] / 3
    assert result["reference_measured"]["ratio_to"]["int4"]["ratio"] > 0
    assert {stage["name"] for stage in result["limits"]["stages"]} >= {"vision", "prefill", "decode"}


def test_where_the_time_of_an_action_goes(run: tuple[dict[str, Any], Path]) -> None:
    """In the result, the Markdown and the page, of each candidate; a stage's limit is that of its bytes or products."""
    for row in run[0]["candidates"]:
        found = row["waterfall"]
        stages = {stage["name"]: stage for stage in found["limits"]["stages"]}
        for name in ("vision", "prefill", "decode"):
            assert stages[name]["measured_ms"] == pytest.approx(found["measured_ms"][name], abs=1e-4)
            assert stages[name]["bytes"] > 0
            assert stages[name]["operations"] > 0
        parts = [milliseconds for name, milliseconds in found["measured_ms"].items() if name != "total"]
        assert sum(parts) == pytest.approx(found["measured_ms"]["total"], rel=0.5)
        assert any(operator["name"].startswith("aten::") for operator in found["operators"])
        title = f"One action of {row['name']}"
        assert f"{title}, stage by stage" in (run[1] / "out" / "report.md").read_text(encoding="utf-8")
        assert f"{title} beside its limit" in (run[1] / "out" / "report.html").read_text(encoding="utf-8")


def test_a_peer_that_cannot_run_is_a_row_that_says_why(run: tuple[dict[str, Any], Path]) -> None:
    plain, broken = run[0]["peers"]
    assert plain["ran"] is True
    assert plain["latency"]["p50_ms"] > 0
    assert plain["agreement"]["teacher_forced"]["mean"] > 0.9
    assert broken["ran"] is False
    assert "bnb-nf4 stopped (exit 1)" in broken["why_not"]
    assert "latency" not in broken
    for row in run[0]["candidates"]:
        assert row["against_peers"].keys() == {"hf-bf16"}
        both = row["agreement"]["teacher_forced"]["mean"] - plain["agreement"]["teacher_forced"]["mean"]
        assert row["against_peers"]["hf-bf16"]["teacher_forced_difference"]["mean"] == pytest.approx(both)
    assert "frame by frame" in (run[1] / "out" / "report.md").read_text()


def test_reports_and_card_are_written(run: tuple[dict[str, Any], Path]) -> None:
    result, root = run
    assert reports.read(root / "out") == json.loads(json.dumps(result))
    for name in reports.FILES:
        assert (root / "out" / name).stat().st_size > 0
    assert (root / "out" / "report.md").read_text() == reports.markdown(result)
    card = root / "int4" / "evidence" / "README.md"
    assert "int4" in card.read_text()
    Artifact(root / "int4").verify()  # the card is no part of what is hashed


def test_the_reference_is_asked_once(
    run: tuple[dict[str, Any], Path], tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    told: list[str] = []
    bench([tiny_artifacts[8]], Reference(TINY, limit=12), tmp_path / "out", Plan(profile="none"), told.append)
    assert "reference: answered before" in told
    assert "rounding shaken: answered before" in told


def test_a_damaged_answer_in_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_VLA_CACHE", str(tmp_path))
    predictions.cache_directory().mkdir(parents=True)
    (predictions.cache_directory() / "key.npz").write_bytes(b"PK not an archive")
    assert predictions.kept("key") is None


def test_policies_that_are_not_alike_are_not_compared(
    tiny_artifacts: Mapping[int, Path], golden_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="different networks"):
        bench([tiny_artifacts[4]], Reference(str(golden_checkpoint)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fewer_frames_than_asked_and_other_weights_are_said(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    key = next(iter(Artifact(tiny_artifacts[16]).manifest.config.statistics))
    write_frames(frames, [(Frame(Path("0.png"), "go", key), synthetic_image(0, 28))])
    other = Path(shutil.copytree(tiny_artifacts[16], tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["source"]["files"] = [{"model.safetensors": "0" * 64}]
    (other / MANIFEST).write_text(json.dumps(manifest))
    plan = Plan(profile="none")
    result = bench([other], Reference(TINY, frames=frames, limit=50), tmp_path / "out", plan)
    assert result["notes"][0] == "50 frames were asked for, 1 are there"
    assert "other was made from other files than this reference" in result["notes"][1]


def test_no_frames(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    with pytest.raises(FrameError, match=r"frames\.jsonl is missing"):
        bench([tiny_artifacts[4]], Reference(TINY, frames=tmp_path / "frames"), tmp_path / "out")
    write_whole(tmp_path / "frames" / "frames.jsonl", "\n")
    with pytest.raises(FrameError, match="lists no frames"):
        bench([tiny_artifacts[4]], Reference(TINY, frames=tmp_path / "frames"), tmp_path / "out")


def test_a_crashed_candidate_is_a_red_gate_and_the_others_stay(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_artifacts[4], tmp_path / "broken"))
    with (broken / "head.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    plan = Plan(profile="none")
    result = bench([broken, tiny_artifacts[16]], Reference(TINY, limit=4), tmp_path / "out", plan)
    assert "head.safetensors" in candidate(result, "broken")["failed"]
    assert [gate["name"] for gate in result["gates"] if gate["passed"] is False] == ["measured"]
    assert candidate(result, tiny_artifacts[16].name)["agreement"] is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"floors": ("no such change",)},
        {"peers": (("no such peer", None),)},
        {"profile": "none", "trial": "live"},
        {"time_reference": False, "trial": "live"},
        {"profile": "no such profile"},
        {"paces_hz": (5.0, 0.0)},
        {"paces_hz": (float("nan"),)},
        {"peers": (("hf-bf16", "/no/such/python"),)},
    ],
)
def test_a_plan_that_does_not_exist(wrong: dict[str, Any]) -> None:
    from edge_vla.bench.closed_loop import Trial

    if wrong.get("trial"):
        wrong = {**wrong, "trial": Trial("demo:1", 4, live=True)}
    with pytest.raises(UsageError):
        Plan(**wrong)


@pytest.mark.parametrize("wrong", [{"table": "demo:9"}, {"episodes": 0}, {"margin": 0.0}, {"margin": float("nan")}])
def test_a_trial_that_does_not_exist(wrong: dict[str, Any]) -> None:
    from edge_vla.bench.closed_loop import Trial

    with pytest.raises(UsageError, match="--"):
        Trial(**{"table": "demo:1", "episodes": 4, **wrong})


@pytest.mark.parametrize("name", ["reference", "hf-bf16", "twice"])
def test_two_sides_of_one_name(name: str, tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    given = [shutil.copytree(tiny_artifacts[8], tmp_path / name)] * (2 if name == "twice" else 1)
    with pytest.raises(UsageError, match=f"called .*{name}"):
        bench(given, Reference(TINY), tmp_path / "out", Plan(profile="none", peers=(("hf-bf16", None),)))


def test_peers_are_not_calibrated_on_what_judges_them(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    write_frames(frames, [(Frame(Path("0.png"), "go", "tiny"), synthetic_image(0, 28))])
    for other, words in ((frames, "calibrate on others"), (tmp_path / "none", "none")):
        plan = Plan(profile="none", peer_frames=other)
        with pytest.raises((UsageError, FrameError), match=words):
            bench([tiny_artifacts[8]], Reference(TINY, frames=frames), tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()
