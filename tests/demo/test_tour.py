"""`edge-vla demo` on the shipped policy: the whole path, small, with everything it promises to leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.cli import main


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tour") / "demo-out"
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(directory), "--episodes", "2", "--frames", "12"])
    assert not end.value.code
    return directory


def test_what_it_leaves(out: Path) -> None:
    result = json.loads((out / "result.json").read_text())
    assert result["kind"] == "demo"
    assert result["frames"]["source"] == "given"
    assert {name: len(rows) for name, rows in result["closed_loop"].items()} == {
        "int4 artifact": 2,
        "bf16 reference": 2,
    }
    assert result["agreement"]["would_be_invalid"] == 0
    report = (out / "report.md").read_text()
    for title in ("Is it the same policy?", "How fast, how large?", "Does it still do the task?"):
        assert f"## {title}" in report
    assert Image.open(out / "episode.png").size[0] > 600


def test_the_artifact_stands_on_its_own(out: Path) -> None:
    artifact = Artifact(out / "artifact")
    artifact.verify()
    assert artifact.manifest.source["adapters"] == 1
    policy = edge_vla.load(out / "artifact", "cpu")
    frame = artifact.manifest.golden[0]
    action = policy.act(Image.open(out / "artifact" / frame.image), frame.instruction)
    assert action.tokens == frame.tokens
    assert action.kernels["int4"] == "torch-int4pack"


def test_a_second_run_does_not_overwrite(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(out)])
    assert end.value.code == 2
    assert "exists already" in capsys.readouterr().err
