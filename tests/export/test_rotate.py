"""`--rotate` in whole exports: with outliers planted W8A8 keeps its tokens, calibration sees what is quantised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.formats.divergence import divergence, forced_logits
from benchmarks.formats.outliers import plant
from edge_vla.artifact import Artifact
from edge_vla.data import synthetic_image
from edge_vla.demo import BASE
from edge_vla.errors import UsageError
from edge_vla.export import Recipe, export
from edge_vla.export.huggingface import export_checkpoint
from edge_vla.inspection import describe
from edge_vla.runtime import Policy, load
from tests.conftest import TINY
from tests.export.crash import tiny_frames

INSTRUCTION = "pick up the red block"


def test_int8_activations_survive_planted_outliers(tmp_path: Path) -> None:
    """The reference is one and the same function; only in the plain artifact do int8 rows lose what it does."""
    source = plant("loud", BASE, tmp_path / "loud", ())
    truth, before = load(source, "cpu"), load(BASE, "cpu")
    recipes = {"plain": Recipe(bits=8, activations=8), "rotated": Recipe(bits=8, activations=8, rotate=True)}
    made = {name: export(source, tmp_path / name, recipe) for name, recipe in recipes.items()}
    expected = answers(truth, truth)
    assert torch.equal(answers(before, truth), expected), "planting moves no bit of the reference"
    found = {name: answers(load(artifact.directory, "cpu"), truth) for name, artifact in made.items()}
    same = {name: float((one.argmax(-1) == expected.argmax(-1)).double().mean()) for name, one in found.items()}
    loss = {name: divergence(expected[None], one[None]).item() for name, one in found.items()}
    assert same["plain"] < 0.8 < 0.85 < same["rotated"], same
    assert loss["plain"] > 50 * loss["rotated"], loss
    recorded = Artifact(made["rotated"].directory).manifest
    assert recorded.recipe.rotate
    assert recorded.to_json()["recipe"]["rotate"] is True  # type: ignore[index]
    facts = describe(str(made["rotated"].directory)).facts["recipe"]
    assert facts == {"activations": 8, "bits": 8, "group": None, "merge_arithmetic": "fp32", "rotate": True, "seed": 0}
    assert "rotate" not in Artifact(made["plain"].directory).manifest.recipe.to_json()


def answers(policy: Policy, truth: Policy) -> Tensor:
    """(images * dims, bins) logits of `policy`, each given the reference's earlier tokens."""
    found = []
    for number in range(6):
        image = synthetic_image(number, 112)
        hidden = policy.forced(image, INSTRUCTION, truth.act(image, INSTRUCTION).tokens)
        found.append(policy.network.head.logits(hidden))
    return torch.cat(found)


@pytest.mark.filterwarnings("ignore:tokenizer.json has 320 pieces")
def test_calibration_sees_the_rotated_network(tmp_path: Path) -> None:
    """GPTQ on rotated weights halves the loss of rounding; on the plain network's rows it would add to it."""
    frames = tiny_frames(tmp_path / "frames")
    truth = forced_logits(load(TINY, "cpu", dtype="fp32"), frames)
    loss = {}
    for method in ("rtn", "gptq"):
        recipe = Recipe(method=method, rotate=True, calibration_frames=12)
        made = export_checkpoint(TINY, tmp_path / method, "gptq", recipe, (), frames)
        loss[method] = divergence(truth, forced_logits(load(made, "cpu", dtype="fp32"), frames)).mean()
    assert loss["gptq"] < 0.8 * loss["rtn"]


def test_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    """Its embeddings would be turned, and whoever brings the pictures' would not know."""
    with pytest.raises(UsageError, match="projector"):
        export_checkpoint(TINY, tmp_path / "out", "gptq", Recipe(rotate=True), decoder_only=True)
    assert not (tmp_path / "out").exists()
