"""TensorRT and ONNX Runtime on a real GPU: built there, inside the engine's graph, beside the engine's own kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.cli import main
from edge_vla.data import Frame, write_frames
from edge_vla.demo import BASE
from edge_vla.demo.render import render, world
from edge_vla.demo.world import start
from edge_vla.errors import BackendError
from edge_vla.export import Recipe, export
from edge_vla.runtime.vision.onnx import runtime
from edge_vla.runtime.vision.onnx_device import CUDA
from edge_vla.runtime.vision.tensorrt.library import library

pytestmark = pytest.mark.gpu
BOUNDS = {"tensorrt": 0.01, "tensorrt/int8": 0.03, "onnx-cuda": 0.01}  # of the embeddings' norm, beside float32


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(BASE, tmp_path_factory.mktemp("demo") / "artifact", Recipe(bits=4)).directory


@pytest.mark.parametrize("name", BOUNDS)
def test_the_same_embeddings_and_tokens(name: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures = [render(start(seed, "pick")[0], world(1)) for seed in range(100, 132)]
    write_frames(tmp_path / "frames", [(Frame(Path(f"{i}.png"), "pick it up"), one) for i, one in enumerate(pictures)])
    options = ["--precision", "int8", "--frames", str(tmp_path / "frames")] if name.endswith("int8") else []
    if name == "onnx-cuda":
        if CUDA not in runtime().get_available_providers():
            pytest.skip("needs onnxruntime-gpu")
        options.append("--graph-only")
    else:
        try:
            library()
        except BackendError as error:
            pytest.skip(str(error))
    with pytest.raises(SystemExit) as end:
        main(["build-engine", str(demo), *options])
    assert not end.value.code
    made, plain = edge_vla.load(demo, "cuda", name), edge_vla.load(demo, "cuda")
    exact = edge_vla.load(demo, "cpu", "torch", dtype="fp32", check=False)
    size = Artifact(demo).manifest.config.spec.image_size
    pixels = torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(0))
    wanted = exact.network.vision(pixels)
    got = made.network.vision(pixels.cuda()).float().cpu()
    assert (got - wanted).norm() < BOUNDS[name] * wanted.norm()
    same = [
        made.act(one, "pick up the red block").tokens == plain.act(one, "pick up the red block").tokens
        for one in pictures
    ]
    assert sum(same) >= len(same) // 2
    again = made.act(pictures[0], "pick up the red block")
    assert again.tokens == made.act(pictures[0], "pick up the red block").tokens
