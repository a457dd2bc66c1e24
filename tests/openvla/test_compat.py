"""The Hugging Face face: what OpenVLA's evaluation scripts call, called as they call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import edge_vla
from edge_vla import compat
from edge_vla.errors import UsageError
from tests.golden.openvla_tiny import cases


def test_predict_action_equals_act(golden_checkpoint: Path) -> None:
    model, processor = compat.load(golden_checkpoint, "cpu", dtype="fp32")
    for case in cases():
        prompt = f"In: What action should the robot take to {case.instruction.lower()}?\nOut:"
        inputs: Any = processor(prompt, Image.fromarray(case.image)).to("cpu", dtype=torch.float32)
        action = model.predict_action(**inputs, unnorm_key=case.unnorm_key, do_sample=False)
        assert np.array_equal(action, case.action)
        action[-1] = 0.0  # LIBERO's script edits the gripper in place
        assert case.unnorm_key in model.norm_stats


def test_bf16_inputs_as_the_scripts_cast_them(golden_checkpoint: Path) -> None:
    model, processor = compat.load(golden_checkpoint, "cpu")
    policy = edge_vla.load(golden_checkpoint, "cpu")
    case = cases()[0]
    prompt = f"In: What action should the robot take to {case.instruction}?\nOut:"
    inputs: Any = processor(prompt, Image.fromarray(case.image)).to("cpu", dtype=torch.bfloat16)
    assert inputs["input_ids"].dtype == torch.int64
    expected = policy.act(case.image, case.instruction, case.unnorm_key).values
    got = model.predict_action(**inputs, unnorm_key=case.unnorm_key)
    assert np.array_equal(got, expected)


def test_statistics_can_be_replaced_as_deploy_does(golden_checkpoint: Path) -> None:
    model, _ = compat.load(golden_checkpoint, "cpu")
    model.norm_stats = {"mine": {"action": {"q01": [0.0] * 3, "q99": [1.0] * 3}}}
    assert model.get_action_dim() == 3


def test_sampling_is_refused(golden_checkpoint: Path) -> None:
    model, processor = compat.load(golden_checkpoint, "cpu")
    inputs: Any = processor("In: What action should the robot take to x?\nOut:", Image.new("RGB", (8, 8)))
    with pytest.raises(UsageError, match="do_sample"):
        model.predict_action(**inputs, do_sample=True)
