"""The noise floor's noise: as large as rounding, in both directions, and gone afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import edge_vla
from edge_vla.data import synthetic_image
from edge_vla.errors import UsageError
from edge_vla.runtime import rounding_noise
from edge_vla.runtime.noise import add_rounding_noise


def test_noise_is_a_step_at_most_and_has_no_direction() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(1)).bfloat16()
    moved = add_rounding_noise(values, torch.Generator().manual_seed(2)).float() / values.float() - 1
    assert moved.abs().max() <= 2.0**-7, "one step up, of a value just over a power of two"
    up, down = (moved > 0).float().mean(), (moved < 0).float().mean()
    assert 0.1 < up < 0.2
    assert abs(up - down) < 0.02


def test_it_lasts_as_long_as_it_is_asked_to(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[16], "cpu", "torch", kernel="torch")
    picture, text = synthetic_image(0, 28), "open the drawer"
    before = policy.act(picture, text)
    with rounding_noise(policy.network, seed=0):
        during = policy.act(picture, text)
    with rounding_noise(policy.network, seed=0):
        again = policy.act(picture, text)
    after = policy.act(picture, text)
    assert before.margins == after.margins
    assert during.margins == again.margins
    assert during.margins != before.margins


def test_a_graph_takes_no_rounding_noise(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[16], "cpu", "onnx")
    with pytest.raises(UsageError, match="torch"), rounding_noise(policy.network, seed=0):
        pass
