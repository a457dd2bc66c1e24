"""Adapters and the weights that peft 0.11.1 merged them into, read from `peft_0_11_1.npz`.

`make_peft_0_11_1.py` made the file and says, kind by kind, in which order and dtype peft 0.11.1 computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .storage import write_safetensors

STORED: Final = Path(__file__).with_name("peft_0_11_1.npz")

Bits = npt.NDArray[np.uint16]  # bfloat16 bit patterns
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """What `save_pretrained` left: `adapter_config.json`, and the tensors under their `base_model.model.` keys."""

    config: Mapping[str, Any]
    tensors: Mapping[str, npt.NDArray[Any]]  # uint16 is bfloat16, float32 is itself


@dataclass(frozen=True)
class Merge:
    """One base with its adapters, in the order of merging, and peft's result.

    `merged` holds only the tensors that changed; every other one is the base's, bit for bit.
    """

    name: str
    base: Mapping[str, Bits]
    adapters: tuple[Adapter, ...]
    merged: Mapping[str, Bits]
    merged_float32: Mapping[str, Floats]  # the same adapters merged by peft into the base as float32

    def write(self, directory: Path) -> tuple[Path, tuple[Path, ...]]:
        """Write the base as one `model.safetensors` and each adapter as a folder; return the paths."""
        directory.mkdir(parents=True, exist_ok=True)
        base = directory / "model.safetensors"
        write_safetensors(base, self.base)
        folders = []
        for number, adapter in enumerate(self.adapters):
            folder = directory / f"adapter_{number}"
            folder.mkdir(exist_ok=True)
            write_safetensors(folder / "adapter_model.safetensors", adapter.tensors)
            (folder / "adapter_config.json").write_text(json.dumps(adapter.config), encoding="utf-8")
            folders.append(folder)
        return base, tuple(folders)


@cache
def _arrays() -> dict[str, npt.NDArray[Any]]:
    with np.load(STORED) as stored:
        return {name: stored[name] for name in stored.files}


def _under(prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): values.copy() for name, values in _arrays().items() if name.startswith(prefix)}


def merges() -> list[Merge]:
    """Every kind of adapter that was merged, by name."""
    names = sorted({name.split("/")[0] for name in _arrays()} - {"base"})
    found = []
    for name in names:
        adapters: list[Adapter] = []
        while f"{name}/config_{len(adapters)}" in _arrays():
            number = len(adapters)
            config = json.loads(str(_arrays()[f"{name}/config_{number}"]))
            adapters.append(Adapter(config=config, tensors=_under(f"{name}/adapter_{number}/")))
        found.append(
            Merge(
                name=name,
                base=_under("base/"),
                adapters=tuple(adapters),
                merged=_under(f"{name}/merged/"),
                merged_float32=_under(f"{name}/merged_float32/"),
            )
        )
    return found
