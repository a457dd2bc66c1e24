"""A calibrated export that calculates on a GPU: near the CPU's in every layer, and the same bits each time.

python -m pytest -m gpu tests/export
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_vla.artifact import Artifact
from edge_vla.errors import BackendError
from edge_vla.export import Recipe, export
from tests.conftest import TINY
from tests.export.crash import tiny_frames


@pytest.mark.gpu
@pytest.mark.parametrize("more", [{}, {"bits_per_weight": 4.5}, {"asymmetric": True}], ids=str)
def test_a_gpu_rounds_as_well_as_the_cpu(more: dict[str, float], tmp_path: Path) -> None:
    frames = tiny_frames(tmp_path / "frames")
    made = [
        export(TINY, tmp_path / f"{number}", Recipe(method="gptq", device=device, **more), (), frames)  # type: ignore[arg-type]
        for number, device in enumerate(("cpu", "cuda", "cuda"))
    ]
    assert made[1].identity == made[2].identity
    layers = [artifact.manifest.layers for artifact in made[:2]]
    for ours, theirs in zip(*layers, strict=True):
        for name, linear in ours.items():
            if more.get("bits_per_weight") is None:
                assert theirs[name].error == pytest.approx(linear.error, rel=0.1)
    assert made[1].manifest.recipe.device == "cuda"
    Artifact(made[1].directory).verify()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    frames = tiny_frames(tmp_path / "frames")
    with pytest.raises(BackendError, match="--device cuda: torch sees no CUDA device"):
        export(TINY, tmp_path / "out", Recipe(method="gptq", device="cuda"), (), frames)
    assert {path.name for path in tmp_path.iterdir()} == {"frames"}
