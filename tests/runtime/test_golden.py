"""`verify` sees a wrong step on the way to an action, though the tokens were asked through the same wrong step."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edge_vla
from edge_vla.artifact import MANIFEST, Artifact, GoldenFrame
from edge_vla.errors import ArtifactError
from edge_vla.openvla import ActionStatistics, Prompter, PromptStyle, prompt
from edge_vla.runtime import golden as golden_module
from edge_vla.runtime.golden import quarters, replay
from tests.bad_input.damage import command, edit_json


@pytest.fixture
def artifact(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifacts[4], tmp_path / "artifact"))


def golden(directory: Path) -> GoldenFrame:
    (frame,) = Artifact(directory).manifest.golden
    return frame


def other_template(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(prompt.TEMPLATES, PromptStyle.OPENVLA, "In: What should the robot do to {instruction}?\nOut:")


def kept_capitals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompter, "text", lambda self, text: prompt.TEMPLATES[self.style].format(instruction=text.upper()))


def no_space_at_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompter, "finish", lambda _, ids: ids)


def preprocessed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    """The same wrong pixels wherever the policy and its replay make any."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from edge_vla.openvla.evaluation import scripts
        from edge_vla.openvla.image import preprocess

        for module in (scripts, golden_module):
            patch.setattr(module, "preprocess", lambda image, contract: change(preprocess(image, contract)))

    return plant


def other_scale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ActionStatistics, "unnormalise", lambda self, x: np.where(self.mask, x * (self.q99 - self.q01), x))


WRONG: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "template": (other_template, "prompt of .* the template is another"),
    "capitals": (kept_capitals, "prompt of"),
    "no empty token": (no_space_at_the_end, "prompt of"),
    "channels reversed": (preprocessed(lambda x: np.ascontiguousarray(x[[2, 1, 0, 5, 4, 3]])), "pixel values"),
    "towers swapped": (preprocessed(lambda x: np.roll(x, 3, axis=0)), "pixel values"),
    "upside down": (preprocessed(lambda x: np.ascontiguousarray(x[:, ::-1])), "pixel values"),
    "exact ImageNet constants": (preprocessed(lambda x: x + np.float32(0.008)), "pixel values"),
    "another scale": (other_scale, "its tokens mean .* statistics"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_is_refused_and_named(
    name: str, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, said = WRONG[name]
    plant(monkeypatch)
    with pytest.raises(ArtifactError, match=said):
        edge_vla.load(artifact, "cpu")
    command(capsys, "verify", artifact).refused_with(6, ["golden/000.png"], lines=None)


@pytest.mark.parametrize("name", ["towers swapped", "another scale", "exact ImageNet constants"])
def test_tokens_alone_would_have_let_it_pass(name: str, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an artifact without steps shows: margins forgive the one, the others never reach a token."""
    edit_json(artifact / MANIFEST, lambda raw: raw.pop("golden_steps"))
    frame = golden(artifact)
    forgiving = dataclasses.replace(frame, noise=max(frame.margins) + 1)
    WRONG[name][0](monkeypatch)
    policy = edge_vla.load(artifact, "cpu", check=False)
    replay(policy, artifact, [forgiving])


def test_recorded_steps_that_are_wrong(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in (("prompt", 7), ("pixels", [9.0] * 4), ("action", 9.0)):
        sound = (artifact / MANIFEST).read_bytes()
        edit_json(artifact / MANIFEST, lambda raw: raw["golden_steps"][0][key].__setitem__(1, value))  # noqa: B023
        command(capsys, "verify", artifact).refused_with(6, ["golden/000.png"], lines=None)
        (artifact / MANIFEST).write_bytes(sound)


def test_steps_are_what_openvla_computes(artifact: Path) -> None:
    """Pixels and action by its formulas, from the manifest's own numbers."""
    frame, raw = golden(artifact), json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    assert frame.steps is not None
    assert frame.steps.prompt == edge_vla.load(artifact, "cpu").prompter(frame.instruction)
    bins, end = raw["network"]["action"]["bins"], raw["network"]["action"]["end"]
    centres = (np.linspace(-1, 1, bins)[:-1] + np.linspace(-1, 1, bins)[1:]) / 2
    chosen = centres[np.clip(end - np.array(frame.tokens) - 1, 0, bins - 2)]
    stats = raw["statistics"][frame.unnorm_key]["action"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    expected = np.where(stats["mask"], 0.5 * (chosen + 1) * (high - low) + low, chosen)
    np.testing.assert_allclose(frame.steps.action, expected, rtol=1e-12)
    size, half = raw["preprocessing"]["size"], raw["preprocessing"]["size"] // 2
    with Image.open(artifact / frame.image) as image:
        levels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) / 255
    mean, deviation = raw["preprocessing"]["means"][1][2], raw["preprocessing"]["deviations"][1][2]
    blue = (levels[..., 2] - mean) / deviation
    blocks = [blue[:half, :half], blue[:half, half:], blue[half:, :half], blue[half:, half:]]
    np.testing.assert_allclose(frame.steps.pixels[5], [block.mean() for block in blocks], atol=2e-5)


def test_quarters_go_row_by_row() -> None:
    pixels = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert quarters(pixels).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_an_artifact_without_steps_still_loads(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As before 0.2; its bytes come back as they were, and `verify` says what it could not check."""
    assert "went unchecked" not in command(capsys, "verify", artifact).stderr
    edit_json(artifact / MANIFEST, lambda raw: raw.pop("golden_steps"))
    assert edge_vla.load(artifact, "cpu")
    opened = Artifact(artifact)
    assert opened.manifest.golden[0].steps is None
    assert json.loads(json.dumps(opened.manifest.to_json())) == json.loads(opened.bytes)
    ended = command(capsys, "verify", artifact)
    assert ended.code == 0
    assert "prompt and pixels went unchecked" in ended.stderr


def test_steps_may_hold_what_a_later_version_adds(artifact: Path) -> None:
    edit_json(artifact / MANIFEST, lambda raw: raw["golden_steps"][0].__setitem__("depth", [1]))
    assert edge_vla.load(artifact, "cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.__setitem__("golden_steps", []), "golden_steps: expected one for each"),
        (lambda raw: raw.__setitem__("golden_steps", 1), "golden_steps"),
        (lambda raw: raw["golden_steps"][0].pop("prompt"), "prompt"),
        (lambda raw: raw["golden_steps"][0]["action"].pop(), "the steps of golden/000.png"),
        (lambda raw: raw["golden_steps"][0]["pixels"].pop(), "the steps of golden/000.png"),
        (lambda raw: raw["golden"][0].__setitem__("steps", None), "unknown key 'steps'"),
    ],
)
def test_malformed_steps_are_refused(change: Callable[[Any], object], said: str, artifact: Path) -> None:
    edit_json(artifact / MANIFEST, change)
    with pytest.raises(ArtifactError, match=said):
        Artifact(artifact)
