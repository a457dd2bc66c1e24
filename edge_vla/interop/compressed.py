"""compressed-tensors' `pack-quantized` checkpoints, as llm-compressor writes them and vLLM and transformers read them.

A matrix of N outputs and K inputs is stored as `weight_packed` (N, bits K/32) int32, low bits first, codes counted from
the lowest level; `weight_scale` (N, K/group); `weight_shape` (2,); where zeros are not in the middle,
`weight_zero_point` (bits N/32, K/group) int32; and where inputs are out of order, `weight_g_idx` (K,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_vla.interop.integers import (
    BITS,
    WORD,
    Integers,
    check_group,
    middle,
    order,
    pack_words,
    symmetric_scales,
    unpack_words,
    unsigned,
    whole,
)
from edge_vla.interop.layout import Parts, one_of, refuse
from edge_vla.quant import PackedWeight


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
    def read(raw: Mapping[str, Any]) -> CompressedTensors:
        """From `quantization_config`; CheckpointError for what would be read wrongly."""
        groups = list((raw.get("config_groups") or {}).values())
        if len(groups) != 1:
            refuse(f"quantization_config: {len(groups)} config_groups, expected one")
        weights = groups[0]["weights"]
        one_of(raw, "format", ("pack-quantized",))
        one_of(groups[0], "format", ("pack-quantized",), "pack-quantized")
        one_of(weights, "type", ("int",))
        if groups[0].get("input_activations") or groups[0].get("output_activations"):
            refuse("quantization_config: activations are quantised too")
        strategy, group = one_of(weights, "strategy", ("group", "channel")), weights.get("group_size")
        if strategy == "group" and (type(group) is not int or group < 1):
            refuse(f"quantization_config: group_size {group!r} is not a positive number")
        return CompressedTensors(one_of(weights, "num_bits", BITS), group if strategy == "group" else None)

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits, {f'groups of {self.group}' if self.group else 'one scale an output'}"

    def to_json(self, layers: str) -> dict[str, Any]:
        """`quantization_config`; `layers` is where the decoder's stand in the model, and nothing else is quantised."""
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
        outer, inner = parts.load("weight_shape", (2,)).tolist()
        return check_group(parts, (outer, inner), self.group)

    def decode(self, parts: Parts) -> Integers:
        outer, inner = self.shape(parts)
        group = self.group or inner
        count = inner // group
        words = whole(parts, "weight_packed", (outer, -(-inner * self.bits // WORD)))
        zeros = torch.full((outer, count), middle(self.bits), dtype=torch.uint8)
        if "weight_zero_point" in parts:
            stored = whole(parts, "weight_zero_point", (-(-outer * self.bits // WORD), count))
            zeros = unpack_words(stored.T, self.bits)[:, :outer].T
        scales = parts.load("weight_scale", (outer, count))
        groups = order(parts, "weight_g_idx", inner, count)
        return Integers(self.bits, unpack_words(words, self.bits)[:, :inner], zeros, scales, groups)

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
