"""The whole comparison on a tiny policy: real processes, one result, reports that quote it, failures that are rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.bench import predictions, reports
from edge_vla.bench.plan import ClosedLoopPlan, Plan, ReferencePlan
from edge_vla.bench.result import ROUNDING_NOISE, Candidate, Result
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
def run(tiny_artifacts: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One bench of 4 and 16 bits with a peer that runs and one whose environment lacks what it needs."""
    root = tmp_path_factory.mktemp("bench")
    copies = [Path(shutil.copytree(tiny_artifacts[bits], root / name)) for bits, name in ((4, "int4"), (16, "whole"))]
    peers = (("hf-bf16", None), ("bnb-nf4", "/bin/false"))
    plan = Plan(profile="brief", peers=peers, stage_profile=True)
    return bench(copies, ReferencePlan(TINY, limit=12), root / "out", plan), root


def candidate(result: Result, name: str) -> Candidate:
    return next(row for row in result.candidates if row.name == name)


def test_16_bits_agree_where_the_reference_s_margin_is_high(run: tuple[Result, Path]) -> None:
    row = candidate(run[0], "whole")
    assert row.agreement is not None
    assert row.agreement.teacher_forced.mean >= run[0].floors[ROUNDING_NOISE].teacher_forced.mean
    assert row.agreement.margins.high_margin is not None
    assert row.agreement.margins.high_margin.flips == 0
    assert row.agreement.margins.high_margin.positions > 0, "an empty set proves nothing"
    assert row.units_off == 0


def test_int4_differs_and_the_floor_stands_beside(run: tuple[Result, Path]) -> None:
    result, _ = run
    int4, floor = candidate(result, "int4").agreement, result.floors[ROUNDING_NOISE]
    assert int4 is not None
    assert int4.teacher_forced.mean < floor.teacher_forced.mean <= 1
    assert (result.frames.source, result.frames.name) == ("synthetic", "synthetic")
    assert (result.frames.count, result.frames.episodes) == (12, 12)


def test_speed_and_memory_of_every_system(run: tuple[Result, Path]) -> None:
    result, root = run
    int4, whole = (candidate(result, name).performance for name in ("int4", "whole"))
    for performance in (int4, whole, result.reference.performance):
        times, memory, tokens = performance.back_to_back, performance.memory, performance.timed_tokens
        assert times is not None
        assert times.p50_ms > 0
        assert times.p90_ms is None, "a dozen queries are too few for a 90th percentile"
        assert times.samples is not None
        assert (root / "out" / times.samples.file).is_file()
        assert memory is not None
        assert memory.loaded_bytes is not None
        assert memory.peak_bytes >= memory.loaded_bytes > 0
        assert tokens is not None
        assert tokens.different == 0 < tokens.queries
    assert int4.memory is not None
    assert whole.memory is not None
    assert int4.memory.weights["decoder"] < whole.memory.weights["decoder"] / 3
    assert result.reference.performance.ratio_to["int4"].ratio > 0
    assert result.limits is not None
    assert {stage.name for stage in result.limits.stages} >= {"vision", "prefill", "decode"}


def test_where_the_time_of_an_action_goes(run: tuple[Result, Path]) -> None:
    """In the result, the Markdown and the page, of each candidate; a stage's limit is that of its bytes or GEMMs."""
    for row in run[0].candidates:
        found = row.stage_profile
        assert found is not None
        stages = {stage.name: stage for stage in found.limits.stages}
        for name in ("vision", "prefill", "decode"):
            assert stages[name].measured_ms == pytest.approx(found.measured_ms[name], abs=1e-4)
            assert stages[name].bytes > 0
            assert stages[name].operations > 0
        parts = [milliseconds for name, milliseconds in found.measured_ms.items() if name != "total"]
        assert sum(parts) == pytest.approx(found.measured_ms["total"], rel=0.5)
        title = f"One action of {row.name}"
        assert title in (run[1] / "out" / "report.md").read_text(encoding="utf-8")
        assert title in (run[1] / "out" / "report.html").read_text(encoding="utf-8")


def test_a_peer_that_cannot_run_is_a_row_that_says_why(run: tuple[Result, Path]) -> None:
    plain, broken = run[0].peers
    assert plain.failed is None
    assert plain.performance.back_to_back is not None
    assert plain.agreement is not None
    assert plain.agreement.teacher_forced.mean > 0.9
    assert plain.versions["transformers"]
    assert "bnb-nf4 stopped (exit 1)" in (broken.failed or "")
    assert broken.performance.latency == {}
    for row in run[0].candidates:
        assert row.agreement is not None
        assert row.against_peers.keys() == {"hf-bf16"}
        both = row.agreement.teacher_forced.mean - plain.agreement.teacher_forced.mean
        assert row.against_peers["hf-bf16"].teacher_forced_difference.mean == pytest.approx(both)
    assert "frame by frame" in (run[1] / "out" / "report.md").read_text()


def test_reports_and_card_are_written(run: tuple[Result, Path]) -> None:
    result, root = run
    assert reports.read(root / "out") == result
    for name in ("result.json", "report.md", "report.html"):
        assert (root / "out" / name).stat().st_size > 0
    assert (root / "out" / "report.md").read_text() == reports.markdown(result)
    card = root / "int4" / "evidence" / "README.md"
    assert "int4" in card.read_text()
    Artifact(root / "int4").verify()  # the card is not among the hashed files


def test_the_reference_is_run_once(
    run: tuple[Result, Path], tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    progress: list[str] = []
    bench([tiny_artifacts[8]], ReferencePlan(TINY, limit=12), tmp_path / "out", Plan(profile="none"), progress.append)
    assert "reference: predictions are cached" in progress
    assert "rounding noise: predictions are cached" in progress


def test_other_preprocessing_is_another_reference_and_stands_in_the_result(
    run: tuple[Result, Path], tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    before, progress = run[0], list[str]()
    plan = ReferencePlan(TINY, limit=12, preprocess="libero")
    after = bench([tiny_artifacts[8]], plan, tmp_path / "out", Plan(profile="none"), progress.append)
    assert "reference: predictions are cached" not in progress
    assert (before.frames.preprocess, after.frames.preprocess) == ("none", "libero")
    assert before.frames.sha256 == after.frames.sha256
    assert reports.read(tmp_path / "out" / "result.json").frames == after.frames
    assert "preprocess libero: turn by 180°" in reports.markdown(after)
    assert "preprocess libero" not in reports.markdown(before)
    assert "Different --preprocess (none, libero)" in reports.compare(before, after).markdown()


def test_a_damaged_file_in_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_VLA_CACHE", str(tmp_path))
    predictions.cache_directory().mkdir(parents=True)
    (predictions.cache_directory() / "key.npz").write_bytes(b"PK not an archive")
    assert predictions.cached("key") is None


def test_policies_that_are_not_alike_are_not_compared(
    tiny_artifacts: Mapping[int, Path], golden_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="different networks"):
        bench([tiny_artifacts[4]], ReferencePlan(str(golden_checkpoint)), tmp_path / "out")
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
    result = bench([other], ReferencePlan(TINY, frames=frames, limit=50), tmp_path / "out", plan)
    assert result.notes[0] == "50 frames were requested, the folder has 1"
    assert "other was made from other files than this reference" in result.notes[1]


def test_no_frames(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    with pytest.raises(FrameError, match=r"frames\.jsonl is missing"):
        bench([tiny_artifacts[4]], ReferencePlan(TINY, frames=tmp_path / "frames"), tmp_path / "out")
    write_whole(tmp_path / "frames" / "frames.jsonl", "\n")
    with pytest.raises(FrameError, match="lists no frames"):
        bench([tiny_artifacts[4]], ReferencePlan(TINY, frames=tmp_path / "frames"), tmp_path / "out")


def test_a_crashed_candidate_is_a_red_gate_and_the_others_stay(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_artifacts[4], tmp_path / "broken"))
    with (broken / "head.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    plan = Plan(profile="none")
    result = bench([broken, tiny_artifacts[16]], ReferencePlan(TINY, limit=4), tmp_path / "out", plan)
    assert "head.safetensors" in (candidate(result, "broken").failed or "")
    assert [gate.name for gate in result.gates if gate.passed is False] == ["measured to the end"]
    assert candidate(result, tiny_artifacts[16].name).agreement is not None


LIVE = ClosedLoopPlan("tests.bench.test_environments:EMPTY", 4, live=True)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Plan(floors=("no such change",)), "--floor no such change: choose one of"),
        (lambda: Plan(peers=(("no such peer", None),)), "--peer no such peer: choose one of"),
        (lambda: Plan(peers=(("hf-bf16", "/no/such/python"),)), "no such program"),
        (lambda: Plan(profile="none", closed_loop=LIVE), "--live needs"),
        (lambda: Plan(time_reference=False, closed_loop=LIVE), "--live needs"),
        (lambda: Plan(profile="no such profile"), "--profile no such profile: choose one of"),
        (lambda: Plan(paces_hz=(5.0, 0.0)), "--pace 0"),
        (lambda: Plan(paces_hz=(float("nan"),)), "--pace nan"),
        (lambda: ClosedLoopPlan("a:b", episodes=0), "--episodes 0"),
        (lambda: ClosedLoopPlan("a:b", episodes=4, margin=0.0), "--margin 0"),
        (lambda: ClosedLoopPlan("a:b", episodes=4, margin=float("nan")), "--margin nan"),
    ],
)
def test_a_plan_that_cannot_be_run(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wrong()


def test_an_environment_that_does_not_exist_is_refused_first(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    plan = Plan(closed_loop=ClosedLoopPlan("no.such.package:world", 4))
    with pytest.raises(UsageError, match=r"--env no\.such\.package:world"):
        bench([tiny_artifacts[8]], ReferencePlan(TINY), tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["reference", "hf-bf16", "twice"])
def test_two_systems_of_one_name(name: str, tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    given = [shutil.copytree(tiny_artifacts[8], tmp_path / name)] * (2 if name == "twice" else 1)
    with pytest.raises(UsageError, match=f"called .*{name}"):
        bench(given, ReferencePlan(TINY), tmp_path / "out", Plan(profile="none", peers=(("hf-bf16", None),)))


def test_peers_are_not_calibrated_on_the_evaluation_frames(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    write_frames(frames, [(Frame(Path("0.png"), "go", "tiny"), synthetic_image(0, 28))])
    for other, words in ((frames, "calibrate on others"), (tmp_path / "none", "none")):
        plan = Plan(profile="none", peer_frames=other)
        with pytest.raises((UsageError, FrameError), match=words):
            bench([tiny_artifacts[8]], ReferencePlan(TINY, frames=frames), tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()
