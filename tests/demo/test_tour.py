"""`edge-vla demo` on the shipped policy: the whole path, small, with everything it promises to leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.bench import reports
from edge_vla.cli import main


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tour") / "demo-out"
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(directory), "--episodes", "2", "--frames", "12"])
    assert not end.value.code
    return directory


def test_what_it_leaves(out: Path) -> None:
    result = reports.read(out / "bench")
    assert result.frames.source == "given"
    (candidate,) = result.candidates
    assert candidate.closed_loop is not None
    assert candidate.closed_loop.environment == "demo world 2"
    (regime,) = candidate.closed_loop.regimes
    assert regime.candidate["all"].episodes == regime.reference["all"].episodes == 2
    assert candidate.agreement is not None
    assert candidate.agreement.invalid.candidate == 0
    assert (out / "bench" / "report.html").stat().st_size > 10_000
    report = (out / "report.md").read_text()
    assert reports.markdown(result) in report
    assert "edge-vla run" in report, "what to do next"
    assert Image.open(out / "episode.png").size[0] > 600


def test_the_artifact_stands_on_its_own(out: Path) -> None:
    artifact = Artifact(out / "artifact")
    artifact.verify()
    assert artifact.manifest.source.adapters == 1
    policy = edge_vla.load(out / "artifact", "cpu")
    frame = artifact.manifest.golden[0]
    action = policy.act(Image.open(out / "artifact" / frame.image), frame.instruction)
    assert action.tokens == frame.tokens
    assert action.kernels["int4"] not in ("", "reference")


def test_a_second_run_does_not_overwrite(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(out)])
    assert end.value.code == 2
    assert "exists already" in capsys.readouterr().err
