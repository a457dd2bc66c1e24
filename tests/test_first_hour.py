"""What a newcomer sees after `bench` and `compare`: about ten lines that fit; and nothing is lost by a second try."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_vla.bench import reports
from edge_vla.bench.reports import brief, verdicts
from edge_vla.bench.result import Gate, Interval
from tests.bench.sample_result import sample_result
from tests.conftest import TINY
from tests.export.crash import tiny_frames
from tests.test_cli import call

QUICK = ("--reference", TINY, "--limit", "4", "--profile", "none")


@pytest.fixture(scope="module")
def bench_out(tiny_artifacts: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "evidence"
    assert call("bench", str(tiny_artifacts[8]), *QUICK, "--out", str(out)) in (0, 1)
    return out


def shown(text: str, width: int = 80) -> list[str]:
    lines = text.splitlines()
    assert max(map(len, lines)) <= width, text
    return lines


def test_bench_ends_in_ten_lines(
    tiny_artifacts: Mapping[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The verdict, a row a system, failed gates by name, the report's path; a log has a line a step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    code = call("bench", str(tiny_artifacts[8]), *QUICK, "--out", "evidence")
    said = capsys.readouterr()
    lines = shown(said.out)
    assert len(lines) <= 10, said.out
    assert re.match("(Passed|Failed|Undecided)", lines[0])
    assert {line.split()[0] for line in lines} >= {"reference", "floor:", "int8", "report:"}
    assert lines[-1] == "report: evidence/report.html (-v prints it here)"
    result = reports.read(tmp_path / "evidence")
    failed = [gate for gate in result.gates if gate.passed is False]
    assert code == bool(failed)
    assert all(any(gate.name in line for line in lines) for gate in failed)
    steps = [line for line in said.err.splitlines() if line.startswith("measuring: ")]
    assert any("int8" in line and "predicting 4 frames" in line for line in steps), said.err


def test_the_whole_report_on_request(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("bench", str(tiny_artifacts[8]), *QUICK, "--out", str(tmp_path / "out"), "-v")
    assert capsys.readouterr().out.startswith((tmp_path / "out" / "report.md").read_text())


def test_a_second_bench_overwrites_nothing_unasked(
    bench_out: Path, tiny_artifacts: Mapping[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stale = bench_out / "latency-gone-back-to-back.npz"
    stale.write_bytes(b"raw samples of an earlier bench")
    note = bench_out / "notes.txt"
    note.write_text("mine")
    before = {path.name: path.read_bytes() for path in bench_out.iterdir()}
    again = ("bench", str(tiny_artifacts[16]), *QUICK, "--out", str(bench_out))
    assert call(*again) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in bench_out.iterdir()} == before
    assert call(*again[:-1], str(bench_out), "--overwrite") in (0, 1)
    assert not stale.exists(), "raw files that the new report is not about"
    assert note.exists()
    assert [row["name"] for row in json.loads((bench_out / "result.json").read_text())["candidates"]] == ["int16"]


def test_a_bench_that_cannot_begin_keeps_the_earlier_one(
    bench_out: Path, tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    before = (bench_out / "result.json").read_bytes()
    options = ("--frames", str(tmp_path / "nowhere"), "--overwrite", "--out", str(bench_out))
    assert call("bench", str(tiny_artifacts[8]), *QUICK, *options) == 4
    assert (bench_out / "result.json").read_bytes() == before


def test_a_peer_without_its_package_is_refused_before_anything_is_measured(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this Python, and in the one that was named for it."""
    for peer in ("gptqmodel", f"gptqmodel={sys.executable}"):
        out = tmp_path / "out"
        assert call("bench", str(tiny_artifacts[8]), *QUICK, "--peer", peer, "--out", str(out)) == 3
        said = capsys.readouterr().err
        assert re.search(r"--peer gptqmodel needs gptqmodel, which .* does not have: .*pip install 'gptqmodel", said)
        assert not out.exists()


def test_a_peer_that_did_not_run_is_named() -> None:
    result = sample_result()
    result.peers[0].failed = "CUDA ran out of memory"
    assert any("did not run: CUDA ran out" in line.text for line in brief.lines(result, 80))


def test_compare_says_what_changed(
    bench_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call("compare", str(bench_out), str(bench_out / "result.json")) == 0
    lines = shown(capsys.readouterr().out)
    assert re.match(r"Nothing changed: all \d+ figures are equal\.", lines[0])
    assert len(lines) <= 10
    assert "| equal |" in reports.compare(reports.read(bench_out), reports.read(bench_out)).markdown()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_result_of_many_parts_fits(width: int) -> None:
    lines = brief.lines(sample_result(), width)
    assert max(len(line.text) for line in lines) <= width
    assert len(lines) <= 16


def test_what_is_missing_to_decide() -> None:
    """The sample has 30 episodes of each kind and needs 344: the number is the option's, for each kind of task."""
    result = sample_result()
    for row in result.candidates:
        for regime in row.closed_loop.regimes if row.closed_loop else ():
            gate = Gate(
                name=f"closed loop, {regime.name}", system=row.name, passed=None, value=-0.1, bound=-0.03, why=""
            )
            needed, kinds = verdicts.missing(gate, result), len(regime.candidate) - 1
            assert needed is not None
            assert needed.each is not None
            assert kinds * needed.each == regime.candidate["all"].episodes + needed.more
            assert kinds * (needed.each - 1) < regime.overall.episodes_needed <= kinds * needed.each


def test_what_is_missing_where_the_planned_episodes_did_not_decide() -> None:
    """Three lost episodes of 32, at a margin that equal policies would have passed."""
    result = sample_result()
    row = next(one for one in result.candidates if one.closed_loop)
    assert row.closed_loop is not None
    (regime,) = row.closed_loop.regimes[:1]
    done = regime.candidate["all"].episodes
    for low, says in ((-0.12, "more episodes: bench --episodes"), (-0.45, "more than 20 times as many episodes")):
        outcome = replace(regime.overall, episodes_needed=done, difference=Interval(-0.02, low, 0.05))
        row.closed_loop.regimes[0] = replace(regime, overall=outcome)
        gate = Gate(name=f"closed loop, {regime.name}", system=row.name, passed=None, value=low, bound=-0.1, why="")
        assert says in verdicts.to_decide(gate, result)
        if low == -0.12:
            needed = verdicts.missing(gate, result)
            assert needed is not None
            assert needed.more == pytest.approx(done * ((0.10 / 0.08) ** 2 - 1), abs=2)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_pipe_gets_plain_text(bench_out: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "edge_vla", "compare", str(bench_out), str(bench_out)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=True)
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_says_what_is_kept(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_vla", "bench", str(tiny_artifacts[8]), "--reference", TINY, "--limit", "512"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and "predicting" not in line:
            line = process.stderr.readline()
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].startswith("interrupted: ")


@pytest.mark.parametrize(("method", "says"), [("gptq", "goes on from there"), ("rtn", "starts anew")])
def test_ctrl_c_in_an_export(
    method: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export that calibrates keeps its layers; any other keeps nothing, and does not say that it wrote nothing."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    tiny_frames(tmp_path / "frames")
    monkeypatch.setattr("edge_vla.export.pipeline.export_vision", interrupt)
    options = ("--method", method, "--frames", str(tmp_path / "frames")) if method == "gptq" else ()
    out = tmp_path / "artifact"
    assert call("export", "random:openvla-tiny", *options, "--out", str(out)) == 130
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert Path(f"{out}.partial").exists() == (method == "gptq")
