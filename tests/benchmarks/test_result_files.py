"""Result files: what is written comes back, old ones read as today's types, newer ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.cpu.results import PACKED, EngineResult, SoakResult
from benchmarks.demo_policy.results import LadderResult, PolicyEvaluation
from benchmarks.formats.results import FLOOR, FormatsResult
from benchmarks.gpu.result import GpuResult
from benchmarks.gpu.tune import TuneResult
from benchmarks.result_files import BODIES, read_result
from benchmarks.study import Target
from edge_vla.bench.result import Result
from edge_vla.errors import FrameError

RESULTS = study.ROOT / "benchmarks" / "results"
FILES = sorted(RESULTS.glob("*.json"))
UNSHOWN = {"crash.json"}  # of a script that is gone


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_committed_result_says_how_it_was_measured(path: Path) -> None:
    found = read_result(path)
    assert found.provenance.command
    assert found.provenance.commit
    assert found.provenance.device
    assert (found.body is None) == (path.name in UNSHOWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_result_comes_back_as_it_was_written(path: Path, tmp_path: Path) -> None:
    body = read_result(path).body
    if body is None or isinstance(body, Result | GpuResult | TuneResult) or body.KIND not in BODIES:
        pytest.skip("no study here writes this kind")
    study.write_result(tmp_path / "again.json", body)
    assert read_result(tmp_path / "again.json").body == body


def test_figures_pass_unchanged() -> None:
    """One figure of each converter, against the old key."""
    raw = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
    engine = read_result(RESULTS / "7b-int4-decoder.json").body
    assert isinstance(engine, EngineResult)
    ours, old = engine.system(PACKED), raw["7b-int4-decoder"]
    assert ours is not None
    assert ours.median.step_ms == old["milliseconds, median"]["step"]
    assert [t.measured for t in engine.targets] == [claim["value"] for claim in old["claims"]]
    assert [t.met for t in engine.targets] == [claim["holds"] for claim in old["claims"]]
    soak = read_result(RESULTS / "demo-soak.json").body
    assert isinstance(soak, SoakResult)
    assert soak.session.p99_ms == raw["demo-soak"]["compared in turns"]["artifact, session"]["p99_ms"]
    formats = read_result(RESULTS / "demo-bits.json").body
    assert isinstance(formats, FormatsResult)
    assert [row.name for row in formats.rows][:2] == [FLOOR, "int4"]
    assert formats.rows[1].high_margin_flips == raw["demo-bits"]["rows"]["int4"]["clear_leads_flipped"]
    policy = read_result(RESULTS / "demo-policy-world1.json").body
    assert isinstance(policy, PolicyEvaluation)
    held_out = raw["demo-policy-world1"]["closed loop"]["pick, wording kept aside"]
    assert policy.closed_loop["pick, held-out wording"].success == held_out["success"]
    ladder = read_result(RESULTS / "demo-ladder.json").body
    assert isinstance(ladder, LadderResult)
    assert ladder.rungs["overfit"].memorised is not None
    assert ladder.rungs["two"].fresh is not None
    assert ladder.rungs["two"].fresh.dx_sign == raw["demo-ladder"]["rungs"]["two"]["free running"]["dx sign"]


@pytest.mark.parametrize("change", [{"version": 99}, {"surplus": 1}, {"layers": "many"}, {"provenance": {}}])
def test_what_cannot_be_read_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    body = read_result(RESULTS / "7b-int4-decoder.json").body
    assert isinstance(body, EngineResult)
    path = tmp_path / "result.json"
    study.write_result(path, body)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FrameError, match=r"expected at most 2: update" if "version" in change else "cannot be read"):
        read_result(path)


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "engine", "version": 1}'])
def test_what_is_no_result_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    for path in (tmp_path / "a.json", tmp_path / "none.json"):
        with pytest.raises(FrameError, match=str(path.name)):
            read_result(path)


def test_a_target_is_met_on_its_bound() -> None:
    target = Target("a", 1.0, "at least", 1.0)
    assert target.met
    assert not replace(target, measured=0.99).met
    assert replace(target, comparison="at most").met
    assert not replace(target, comparison="at most", measured=1.01).met
