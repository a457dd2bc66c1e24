"""Adapters saved by peft 0.10.0 to 0.21.2, and what each version merged them into, read from `peft_versions.npz`.

`make_peft_versions.py` made the file and says what the kinds of adapter are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER: Final = Path(__file__).parent
BASES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Run:
    """One kind of adapter, by all versions that saved and merged it alike; arrays by their hashes."""

    kind: str
    versions: tuple[str, ...]
    config: dict[str, Any]
    adapter: dict[str, str]
    results: dict[str, dict[str, str]]  # by the base's type: the tensors that changed

    def __str__(self) -> str:
        return f"{self.kind}-{self.versions[0]}"

    @property
    def first(self) -> tuple[int, int]:
        major, minor, _ = map(int, self.versions[0].split("."))
        return major, minor

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: _tensor(name).clone() for key, name in self.adapter.items()}
        save_file(tensors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return directory

    def merged(self, base: str) -> dict[str, Tensor]:
        """Every tensor after peft's merge, in the base's type (0.12 to 0.15 leave DoRA's in float32)."""
        changed = {key: _tensor(name).to(BASES[base]) for key, name in self.results[base].items()}
        return {**base_state(base), **changed}


def base_state(base: str) -> dict[str, Tensor]:
    return {key: _tensor(name).to(BASES[base]) for key, name in _table()["base"].items()}


def runs() -> list[Run]:
    found = [
        Run(one["kind"], tuple(one["versions"]), one["config"], one["adapter"], one["merged"])
        for one in _table()["runs"]
    ]
    return sorted(found, key=lambda run: (run.kind, run.first))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((FOLDER / "peft_versions.json").read_text(encoding="utf-8"))
    return table


@cache
def _tensor(name: str) -> Tensor:
    with np.load(FOLDER / "peft_versions.npz") as stored:
        array = stored[name]
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
