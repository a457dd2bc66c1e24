"""The original code's numbers, reproduced: tokens and actions equal, pixel values bit-equal, stages to rounding."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edge_vla
from edge_vla.cli import main
from edge_vla.openvla import as_rgb, preprocess
from tests.golden.openvla_tiny import Case, cases, prompts

CASES = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


@pytest.fixture(scope="module", params=["actions", "full"])
def reference(request: pytest.FixtureRequest, golden_checkpoint: Path) -> edge_vla.Policy:
    return edge_vla.load(golden_checkpoint, "cpu", dtype="fp32", head=request.param)


@CASES
def test_tokens_and_action(reference: edge_vla.Policy, case: Case) -> None:
    action = reference.act(case.image, case.instruction, case.unnorm_key)
    assert action.tokens == tuple(case.token_ids)
    assert np.array_equal(action.values, case.action)
    assert action.values.dtype == np.float64
    assert not any(action.clipped)


@CASES
def test_pixel_values(reference: edge_vla.Policy, case: Case) -> None:
    pixels = preprocess(as_rgb(case.image), reference.config.image)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case.pixel_values_sha256


@CASES
def test_prompt_ids(reference: edge_vla.Policy, case: Case) -> None:
    assert reference.prompter(case.instruction) == tuple(case.prompt_ids)


def test_other_prompts(reference: edge_vla.Policy) -> None:
    for prompt in prompts():
        ids = reference.prompter.encode(prompt.text)
        assert ids == tuple(prompt.ids)
        assert reference.prompter.finish(ids) == (*ids, reference.prompter.empty_token)
        assert reference.prompter.finish(reference.prompter.finish(ids)) == reference.prompter.finish(ids)


@CASES
def test_stages(reference: edge_vla.Policy, case: Case) -> None:
    network = reference.network
    pixels = torch.from_numpy(preprocess(as_rgb(case.image), reference.config.image))[None]
    with torch.inference_mode():
        projected = network.vision(pixels)
    assert np.abs(projected[0].numpy()[list(case.patch_rows)] - case.projected).max() < 5e-5
    hidden = reference.forced(case.image, case.instruction, case.token_ids)
    logits = network.head.logits(hidden).numpy()
    assert np.abs(logits - case.logits).max() < 1e-3
    assert logits.argmax(-1).tolist() == [token - network.action.first for token in case.token_ids]


@CASES
def test_command_line(golden_checkpoint: Path, case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(case.image).save(image)
    with pytest.raises(SystemExit) as exit_info:
        main(["run", str(golden_checkpoint), "--image", str(image), "--instruction", case.instruction,
              "--unnorm-key", case.unnorm_key, "--dtype", "fp32", "--json"])  # fmt: skip
    assert not exit_info.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["tokens"] == list(case.token_ids)
    assert answer["action"] == case.action.tolist()
    assert answer["unnorm_key"] == case.unnorm_key
    assert {"kernels", "timing_ms"} <= set(answer)


def test_black_and_white_differ(reference: edge_vla.Policy) -> None:
    """A port that drops the image still answers; upstream's did, silently, on newer transformers."""
    case = cases()[0]
    black, white = np.zeros_like(case.image), np.full_like(case.image, 255)
    answers = [reference.act(image, case.instruction, case.unnorm_key).tokens for image in (black, white)]
    assert answers[0] != answers[1]
