"""Before an export starts, prompts, pixels and actions are those of other programs; a difference is said at once."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge_vla
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import synthetic_image
from edge_vla.demo import BASE
from edge_vla.errors import CheckpointError
from edge_vla.export import Recipe, export, independent
from edge_vla.export.independent import compare
from edge_vla.openvla import ActionStatistics, ImageContract, Prompter, preprocess
from edge_vla.runtime.golden import quarters
from tests.bad_input.damage import edit_json
from tests.golden import tokenizer_states
from tests.golden.openvla_tiny import cases
from tests.golden.tokenizer_states import truncation

PICTURE = synthetic_image(3, 224)


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_checkpoint, tmp_path / "source"))


def test_a_sound_checkpoint_is_compared_in_all(golden_checkpoint: Path) -> None:
    pytest.importorskip("transformers")
    said = compare(open_checkpoint(golden_checkpoint), ["open the drawer"], PICTURE)
    assert said.startswith("4 prompts as transformers")
    assert "pixels of 2 pictures" in said
    assert "not compared" not in said


def test_a_seeded_source_has_nothing_beside_it() -> None:
    assert compare(open_checkpoint("random:openvla-tiny"), ["go"], PICTURE).startswith(
        "no tokenizer of another program"
    )


def test_it_says_when_transformers_is_absent(golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "not compared: transformers is not installed" in compare(open_checkpoint(golden_checkpoint), ["go"], PICTURE)


def test_it_says_when_transformers_cannot_load_it(folder: Path) -> None:
    pytest.importorskip("transformers")
    sound = open_checkpoint(folder)
    (folder / "tokenizer_config.json").write_text("[1]", encoding="utf-8")
    assert "not compared: transformers cannot load" in compare(sound, ["go"], PICTURE)


def test_another_tokenizer_beside_an_adapter(golden_checkpoint: Path, tmp_path: Path) -> None:
    """A fine-tune that ships its own processor: its prompts must be the base's."""
    pytest.importorskip("transformers")
    sound = open_checkpoint(golden_checkpoint)
    tokenizer_states.write("plain", tmp_path)
    both = replace(sound, files=(*sound.files, (tmp_path / "adapter_config.json",)))
    with pytest.raises(CheckpointError, match=r"prompt of 'go' is \d+ tokens here, \d+ by transformers"):
        compare(both, ["go"], PICTURE)


def cut_prompts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompter, "encode", lambda self, text: tuple(self.tokenizer.encode(text).ids[:12]))


def other_formula(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ActionStatistics, "unnormalise", lambda self, x: np.where(self.mask, x * self.q99, x))


def crooked_pixels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(independent, "preprocess", lambda *given: preprocess(*given)[::-1])


@pytest.mark.parametrize(
    ("plant", "said"), [(cut_prompts, "the prompt of"), (other_formula, "OpenVLA's formula"), (crooked_pixels, "pixel")]
)
def test_a_fault_of_ours_stops_the_export_before_it_starts(
    plant: Callable[[pytest.MonkeyPatch], None],
    said: str,
    golden_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers")
    plant(monkeypatch)
    with pytest.raises(CheckpointError, match=said):
        export(golden_checkpoint, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_saved_truncation_changes_no_token_and_no_artifact_tensor(folder: Path, tmp_path: Path) -> None:
    """The bug report: a quantiser had called the tokenizer with a length, and saved it."""
    case = cases()[0]
    edit_json(folder / "tokenizer.json", lambda raw: raw.__setitem__("truncation", truncation(12)))
    expected = tuple(case.token_ids)
    assert any("truncation" in use.why for use in open_checkpoint(folder).reading.ignored)
    assert (
        edge_vla.load(folder, "cpu", dtype="fp32").act(case.image, case.instruction, case.unnorm_key).tokens == expected
    )
    artifact = export(folder, tmp_path / "artifact", Recipe(bits=16))
    saved = json.loads((artifact.directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None
    with_steps = artifact.manifest.golden[0].steps
    assert with_steps is not None
    assert len(with_steps.prompt) > 12
    policy = edge_vla.load(artifact.directory, "cpu", dtype="fp32")
    assert policy.act(case.image, case.instruction, case.unnorm_key).tokens == expected


@pytest.mark.parametrize("letterbox", [True, False])
@pytest.mark.parametrize("size", [(320, 240), (251, 187), (97, 333)])
def test_torchs_pixels_are_pillows_to_rounding(letterbox: bool, size: tuple[int, int]) -> None:
    """Else the comparison would refuse sound checkpoints, or forgive crooked ones."""
    one = {"interpolation": 3, "size": 224 if letterbox else [224, 224]}
    normal = {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]}
    raw = {
        "image_resize_strategy": "letterbox" if letterbox else "resize-naive",
        "tvf_do_letterbox": letterbox,
        "tvf_letterbox_fill": [123, 116, 103] if letterbox else None,
        "tvf_resize_params": [one],
        "tvf_crop_params": [{"output_size": [224, 224]}],
        "tvf_normalize_params": [normal],
    }
    dice = np.random.default_rng(0)
    for image in (PICTURE.resize(size), Image.fromarray(dice.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))):
        ours = preprocess(image, ImageContract.from_preprocessor(raw, size=224, towers=1))
        theirs = independent._transformed(raw, image).numpy()
        moved = np.abs(quarters(ours) - quarters(theirs)).max()
        assert moved < independent.PIXELS / 4
        assert np.abs(ours - theirs).mean() < 0.02


def test_the_demo_policy_is_compared_too() -> None:
    assert "pixels of 2 pictures" in compare(open_checkpoint(BASE), ["push the red block"], PICTURE)
