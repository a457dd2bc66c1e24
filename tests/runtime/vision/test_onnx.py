"""ONNX Runtime as a vision on the host: float32, the calibrated int8 graph of the device cache, OpenVINO's provider."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import edge_vla
from edge_vla.artifact import VISION, Artifact
from edge_vla.cli import main
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.demo import BASE
from edge_vla.demo.render import render, world
from edge_vla.demo.world import start
from edge_vla.errors import ArtifactError, BackendError
from edge_vla.export import Recipe, export
from edge_vla.runtime.vision.onnx import OPENVINO
from edge_vla.runtime.vision.precision import INT8_DATA, Precision
from edge_vla.runtime.vision.tensorrt.plan import device_cache
from tests.bad_input.damage import edit_tensors, link

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(BASE, tmp_path_factory.mktemp("demo") / "artifact", Recipe(bits=16)).directory


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()


def build(artifact: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["build-engine", str(artifact), "--graph-only", *options])
    assert not end.value.code


def test_int8_from_frames_to_an_action(demo: Path, tmp_path: Path) -> None:
    """As a user does it: calibrate on frames, then run by name; nothing of TensorRT is needed."""
    with pytest.raises(BackendError, match=r"build-engine .* --precision int8 --frames DIR --graph-only"):
        edge_vla.load(demo, "cpu", "onnx/int8", check=False)
    pictures = [render(start(seed, "pick")[0], world(1)) for seed in range(100, 132)]
    write_frames(tmp_path / "frames", [(Frame(Path(f"{i}.png"), "pick it up"), one) for i, one in enumerate(pictures)])
    build(demo, "--precision", "int8", "--frames", str(tmp_path / "frames"))
    folder = device_cache(Artifact(demo).identity)
    assert {path.name for path in folder.iterdir()} == {INT8_DATA, Precision.INT8.graph}
    rounded, plain = (edge_vla.load(demo, "cpu", name, check=False) for name in ("onnx/int8", "onnx"))
    pixels = torch.randn(2, 6, 112, 112, generator=torch.Generator().manual_seed(0))
    got, wanted = rounded.network.vision(pixels), plain.network.vision(pixels)
    assert 1e-4 * wanted.norm() < (got - wanted).norm() < 0.1 * wanted.norm()
    assert rounded.network.chosen["vision"] == "onnx/int8"
    assert len(rounded.act(pictures[0], "pick up the red block").tokens) == 7


def test_a_graph_in_the_cache_reads_the_artifacts_weights(demo: Path) -> None:
    build(demo, "--precision", "fp16")
    folder = device_cache(Artifact(demo).identity)
    assert {path.name for path in folder.iterdir()} == {Precision.FP16.graph}
    before = (folder / Precision.FP16.graph).read_bytes()
    build(demo, "--precision", "fp16")
    assert (folder / Precision.FP16.graph).read_bytes() == before
    (folder / Precision.FP16.graph).write_bytes(before[:-1])
    build(demo, "--precision", "fp16")
    assert (folder / Precision.FP16.graph).read_bytes() == before, "written anew from the artifact"


def test_weights_that_were_changed_make_no_graph(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = link(demo, tmp_path / "spoiled")
    size = (spoiled / VISION).stat().st_size
    edit_tensors(spoiled / VISION, lambda tensors: tensors["projector.fc1.bias"].add_(1))
    assert (spoiled / VISION).stat().st_size == size
    with pytest.raises(SystemExit) as end:
        main(["build-engine", str(spoiled), "--graph-only"])
    assert end.value.code == ArtifactError.exit_code
    assert "the manifest says another" in " ".join(capsys.readouterr().err.split())
    assert not list(device_cache(Artifact(spoiled).identity).iterdir())


def test_a_damaged_graph_is_an_error(demo: Path) -> None:
    """An int8 graph is calibrated, so it is kept, whatever it holds, until `--fresh`."""
    calibrate = ("--precision", "int8", "--frames", str(_frames(demo)))
    build(demo, *calibrate)
    graph = device_cache(Artifact(demo).identity) / Precision.INT8.graph
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    build(demo, *calibrate)
    with pytest.raises(ArtifactError, match=r"does not load in ONNX Runtime.*build-engine --fresh"):
        edge_vla.load(demo, "cpu", "onnx/int8", check=False)
    build(demo, *calibrate, "--fresh")
    assert graph.read_bytes() == whole


def _frames(artifact: Path) -> Path:
    folder = Path(os.environ["XDG_CACHE_HOME"]).parent / "frames"
    size = Artifact(artifact).manifest.config.spec.image_size
    write_frames(folder, [(Frame(Path(f"{index}.png"), "go"), synthetic_image(index, size)) for index in range(32)])
    return folder


@pytest.mark.skipif(OPENVINO not in ort.get_available_providers(), reason="needs onnxruntime-openvino")
def test_openvino_sees_the_same(demo: Path) -> None:
    ours, theirs = (edge_vla.load(demo, "cpu", name, check=False) for name in ("onnx", "onnx-openvino"))
    pixels = torch.randn(1, 6, 112, 112, generator=torch.Generator().manual_seed(0))
    wanted, got = (one.network.vision(pixels) for one in (ours, theirs))
    assert (got - wanted).norm() < 1e-3 * wanted.norm()
