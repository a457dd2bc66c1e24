"""compressed-tensors' `pack-quantized` checkpoints, as llm-compressor writes them and vLLM and transformers read them.

A matrix of N outputs and K inputs is stored as `weight_packed` (N, bits K/32) int32, low bits first, codes counted from
the lowest level; `weight_scale` (N, K/group); `weight_shape` (2,); where zeros are not in the middle,
`weight_zero_point` (bits N/32, K/group) int32; and where inputs are out of order, `weight_g_idx` (K,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_vla import typed_json
from edge_vla.interop.integers import (
    BITS,
    WORD,
    Integers,
    check_group,
    int32_part,
    middle,
    order,
    pack_words,
    symmetric_scales,
    unpack_words,
    unsigned,
)
from edge_vla.interop.layout import Parts, refuse, require
from edge_vla.quant import PackedWeight


@dataclass(frozen=True)
class Weights:
    """How the weights of a group of linears are quantised."""

    num_bits: int
    type: str
    strategy: str
    group_size: int | None = None


@dataclass(frozen=True)
class Group:
    weights: Weights
    format: str | None = None
    input_activations: object = None
    output_activations: object = None


@dataclass(frozen=True)
class Settings:
    """What is read of `quantization_config`."""

    format: str
    config_groups: dict[str, Group] | None = None


@dataclass(frozen=True)
class CompressedTensors:
    """`group` None: one scale an output."""

    bits: int
    group: int | None

    name: ClassVar[str] = "compressed-tensors"
    parts: ClassVar[Mapping[str, bool]] = {
        "weight_packed": True,
        "weight_scale": True,
        "weight_shape": True,
        "weight_zero_point": False,
        "weight_g_idx": False,
    }

    @staticmethod
    def read(raw: object) -> CompressedTensors:
        """From `quantization_config`; CheckpointError for what would be read wrongly."""
        given = typed_json.from_json(Settings, raw, "quantization_config", ignore_unknown=True)
        groups = list((given.config_groups or {}).values())
        if len(groups) != 1:
            refuse(f"quantization_config: {len(groups)} config_groups, expected one")
        weights = groups[0].weights
        require("format", given.format, ("pack-quantized",))
        require("format", groups[0].format, ("pack-quantized", None))
        require("type", weights.type, ("int",))
        require("num_bits", weights.num_bits, BITS)
        require("strategy", weights.strategy, ("group", "channel"))
        if groups[0].input_activations or groups[0].output_activations:
            refuse("quantization_config: activations are quantised too")
        if weights.strategy == "group" and (weights.group_size is None or weights.group_size < 1):
            refuse(f"quantization_config: group_size {weights.group_size} is not a positive number")
        return CompressedTensors(weights.num_bits, weights.group_size if weights.strategy == "group" else None)

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits, {f'groups of {self.group}' if self.group else 'one scale an output'}"

    def to_json(self, layers: str) -> dict[str, object]:
        """`quantization_config`; `layers` is the path of the decoder's layers, and nothing else is quantised."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": None,
                    "output_activations": None,
                }
            },
            "ignore": [r"re:^(?!" + layers.replace(".", r"\.") + r"\.).*"],
            "kv_cache_scheme": None,
        }

    def shape(self, parts: Parts) -> tuple[int, int]:
        n, k = parts.load("weight_shape", (2,)).tolist()
        return check_group(parts, (n, k), self.group)

    def decode(self, parts: Parts) -> Integers:
        n, k = self.shape(parts)
        group = self.group or k
        count = k // group
        words = int32_part(parts, "weight_packed", (n, -(-k * self.bits // WORD)))
        zeros = torch.full((n, count), middle(self.bits), dtype=torch.uint8)
        if "weight_zero_point" in parts:
            stored = int32_part(parts, "weight_zero_point", (-(-n * self.bits // WORD), count))
            zeros = unpack_words(stored.T, self.bits)[:, :n].T
        scales = parts.load("weight_scale", (n, count))
        groups = order(parts, "weight_g_idx", k, count)
        return Integers(self.bits, unpack_words(words, self.bits)[:, :k], zeros, scales, groups)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape (outputs, inputs) fills whole words and whole groups."""
        return not (shape[1] * self.bits % WORD or shape[1] % (self.group or shape[1]))

    def encode(self, packed: PackedWeight) -> dict[str, Tensor]:
        """A symmetric weight of these bits, group and a shape that `fits`, as its parts."""
        scales = symmetric_scales(packed, self.bits)
        return {
            "weight_packed": pack_words(unsigned(packed), self.bits),
            "weight_scale": scales.bfloat16(),
            "weight_shape": torch.tensor(packed.shape),
        }
