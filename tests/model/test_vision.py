"""Towers against timm's own outputs, at small and at true widths; weights come from a closed form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_vla.model import OpenVLA, Tower
from edge_vla.spec import OPENVLA_7B, TINY, TOWERS, TowerSpec
from tests.golden.seeded import seeded_tensor, seeded_weight

GOLDEN = Path(__file__).parent.parent / "golden" / "timm_towers.npz"
NAMES = ["dino_small", "siglip_small", "dino_wide", "siglip_wide"]


def tower(name: str, raw: dict[str, Any]) -> Tower:
    spec: TowerSpec = replace(
        TOWERS[raw["timm_model_id"]],
        image_size=raw["image_size"],
        width=raw["embed_dim"],
        depth=raw["depth"],
        heads=raw["num_heads"],
        mlp_width=raw["mlp_hidden"],
    )
    network = Tower(spec)
    weights = {
        key: torch.from_numpy(seeded_weight(name, key, tuple(value.shape)))
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_timm(name: str) -> None:
    with np.load(GOLDEN) as golden:
        raw = json.loads(str(golden[f"{name}/spec"]))
        expected = golden[f"{name}/float64"]
    network = tower(name, raw).double()
    size = network.spec.image_size
    pixels = torch.from_numpy(seeded_tensor(f"{name}/pixel_values", (1, 3, size, size), 2.0)).double()
    features = network(pixels)[0].numpy()[:: raw["row_step"], :: raw["column_step"]]
    assert features.shape == expected.shape
    assert np.abs(features - expected).max() < 1e-9


def test_towers_are_concatenated_in_order() -> None:
    torch.manual_seed(0)
    backbone = OpenVLA(TINY).vision_backbone.eval()
    pixels = torch.randn(1, 6, 28, 28)
    with torch.inference_mode():
        both = backbone(pixels)
        first, second = backbone.featurizer(pixels[:, :3]), backbone.fused_featurizer(pixels[:, 3:])
    assert torch.equal(both, torch.cat([first, second], dim=2))


def test_the_7b_has_the_checkpoints_size() -> None:
    with torch.device("meta"):
        network = OpenVLA(OPENVLA_7B)
    dead = 43_080_480  # last blocks, final norms and pooling head, which never reach an action
    assert sum(weight.numel() for weight in network.parameters()) == 7_541_237_184 - dead
