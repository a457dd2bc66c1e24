"""transformers' and peft's own reading of a folder: the oracle for which file wins and what is in it.

OpenVLA's class is not installed here, but `from_pretrained` asks of a class only its parameters. `Frame` has those of
the golden checkpoint, linear layers as linear layers, so that transformers chooses and opens the files, and peft its
adapter, as they would for OpenVLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.golden.openvla_tiny import bfloat16_tensors


class FrameConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "openvla"


class Frame(PreTrainedModel):  # type: ignore[misc]
    config_class = FrameConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, (_, array) in bfloat16_tensors().items():
            _place(self, name, array.shape)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """What a folder lacks stays as `_place` made it."""


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor that transformers reads there, with the adapter that it finds merged in, float32."""
    model = Frame.from_pretrained(directory, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name
    }


def _place(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    *path, last = name.split(".")
    module = model
    for part in path:
        if not hasattr(module, part):
            setattr(module, part, nn.Module())
        parent, module = module, getattr(module, part)
    if last == "weight" and len(shape) == 2 and type(module) is nn.Module:
        linear = nn.Linear(shape[1], shape[0], bias=False)
        for key, parameter in module.named_parameters():
            setattr(linear, key, parameter)
        setattr(parent, path[-1], linear)
    else:
        setattr(module, last, nn.Parameter(torch.zeros(shape)))


def unnormalised(normalised: Any, action: Mapping[str, Any]) -> Any:
    """OpenVLA's own formula, on a data set's statistics as they stand in the file."""
    import numpy as np

    mask = action.get("mask", np.ones_like(action["q01"], dtype=bool))
    high, low = np.array(action["q99"]), np.array(action["q01"])
    return np.where(mask, 0.5 * (normalised + 1) * (high - low) + low, normalised)
