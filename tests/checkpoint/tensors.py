"""A source of tensors in memory, and adapters on disk, for the tests beside."""

from __future__ import annotations

import json
from collections.abc import KeysView
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from edge_vla.checkpoint import Adapter


class Tensors:
    """A source in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __str__(self) -> str:
        return "the base"

    def names(self) -> KeysView[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def load(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def write_adapter(directory: Path, tensors: dict[str, Tensor], **config: Any) -> Adapter:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Adapter(directory)
