"""`edge-vla demo` on the shipped policy: the whole path, small, with everything it promises to leave behind."""

from __future__ import annotations

import doctest
import re
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.bench import reports
from edge_vla.cli import main
from edge_vla.demo.tour import UNFINISHED


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


def test_the_first_hour_in_python(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the page, in its order, with the answers that it shows."""
    monkeypatch.chdir(out.parent)
    page = (Path(__file__).parents[2] / "docs" / "first-hour.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```pycon\n(.*?)^```", page, re.M | re.S))
    said = StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = runner.run(doctest.DocTestParser().get_doctest(blocks, {}, page[:20], None, 0), out=said.write)
    assert found.failed == 0, said.getvalue()
    assert found.attempted > 30


def test_without_a_package_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(tmp_path / "demo-out")])
    assert end.value.code == 3
    assert "needs onnxscript: pip install 'edge-vla[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "demo-out").exists()


def test_what_was_left_unfinished_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle keeps a mark, and only what bears it goes."""
    out = tmp_path / "demo-out"
    for step in ("record", "export"):
        monkeypatch.setattr(f"edge_vla.demo.tour.{step}", interrupt)
        with pytest.raises(SystemExit) as end:
            main(["demo", "--out", str(out), "--frames", "8"])
        assert end.value.code == 130
        monkeypatch.undo()
        assert (out / UNFINISHED).exists()
    (out / UNFINISHED).unlink()
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(out)])
    assert end.value.code == 2, "without its mark it may be anybody's"


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_second_run_does_not_overwrite(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(out)])
    assert end.value.code == 2
    assert "exists already" in capsys.readouterr().err
