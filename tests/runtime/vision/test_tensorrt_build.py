"""`edge-vla build-engine` with a real TensorRT-RTX, which builds without a GPU; skipped where it is not installed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_vla.artifact import VISION, Artifact
from edge_vla.cli import main
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.demo import BASE
from edge_vla.errors import ArtifactError
from edge_vla.export import Recipe, export
from edge_vla.runtime.vision.graphs import TypedGraph
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.tensorrt.build import BuildOptions, build
from edge_vla.runtime.vision.tensorrt.library import RTX, library

pytest.importorskip("tensorrt_rtx")
ATTENTIONS = 8  # of the demo policy's towers
FUSED = re.compile(rb"name=\"?_gemm_mha_v")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(BASE, tmp_path_factory.mktemp("demo") / "artifact", Recipe(bits=4)).directory


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["build-engine", *arguments])
    return int(end.value.code or 0)


@pytest.mark.parametrize("target", ["sm_86", "sm_89"])
@pytest.mark.parametrize("precision", Precision)
def test_every_precision_parses_and_builds(
    precision: Precision, target: str, demo: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = Artifact(demo).manifest.config.spec.image_size
    options = ["--precision", precision.value, "--target", target, "--json"]
    if precision is Precision.INT8:
        options += ["--frames", str(folder_of_frames(tmp_path / "frames", size))]
    assert run(str(demo), *options) == 0
    said = json.loads(capsys.readouterr().out)
    plan = Path(said["path"])
    assert plan.stat().st_size == said["bytes"]
    assert len(FUSED.findall(plan.read_bytes())) == ATTENTIONS
    record = json.loads(plan.with_suffix(".json").read_text())
    assert (record["identity"]["gpu"], record["identity"]["precision"]) == (target, precision.value)
    again = plan.stat().st_mtime_ns
    assert run(str(demo), *[one for one in options if one != "--json"]) == 0
    assert "built already" in capsys.readouterr().err
    assert plan.stat().st_mtime_ns == again
    plan.write_bytes(plan.read_bytes()[:-100])
    assert run(str(demo), *options) == 0
    assert "truncated" in capsys.readouterr().err
    assert len(FUSED.findall(plan.read_bytes())) == ATTENTIONS


def folder_of_frames(folder: Path, size: int) -> Path:
    named = [(Frame(Path(f"{index}.png"), "pick it up"), synthetic_image(index, size)) for index in range(32)]
    write_frames(folder, named)
    return folder


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "sm_87"], 2, "builds for sm_75"),
        (["--target", "orin"], 2, "--target orin"),
        (["--precision", "fp8"], 2, "choose one of fp16, bf16, int8"),
        (["--precision", "int8", "--target", "sm_86"], 2, "--frames DIR"),
        (["--frames", "."], 2, "needs no calibration"),
        ([], 3, "--target sm_86"),
    ],
)
def test_what_cannot_be_built_says_so(
    options: list[str], code: int, said: str, tiny_artifacts: Mapping[int, Path], cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(str(tiny_artifacts[16]), *options) == code
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "Traceback" not in error


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vision.fp16.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match="does not parse"):
        build(
            library((RTX,)), TypedGraph(tmp_path / "vision.fp16.onnx", tmp_path / VISION), BuildOptions(target="sm_86")
        )


def test_a_graph_of_something_else_is_refused(tmp_path: Path) -> None:
    """An empty file parses: a network of nothing."""
    (tmp_path / "vision.fp16.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"is no vision graph.*--fresh"):
        build(
            library((RTX,)), TypedGraph(tmp_path / "vision.fp16.onnx", tmp_path / VISION), BuildOptions(target="sm_86")
        )
