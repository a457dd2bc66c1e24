"""GPTQ checkpoints, as AutoGPTQ began them and gptqmodel, transformers, vLLM and TensorRT-Edge-LLM read them.

A matrix of N outputs and K inputs is stored input first: `qweight` (bits K/32, N) int32 with the codes of K packed low
bits first, `qzeros` (K/group, bits N/32) int32, `scales` (K/group, N) float16, and `g_idx` (K,) int32, each input's
group. The first version, which everybody writes, stores zeros minus one.
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
    in_order,
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
from edge_vla.version import __version__

ONES = {4: 0x11111111, 8: 0x01010101}  # one in every code of a word
VERSIONS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class Settings:
    """What is read of `quantization_config`; `format` is an older name of `checkpoint_format`."""

    bits: int
    group_size: int
    checkpoint_format: str | None = None
    format: str = "gptq"
    pack_dtype: str = "int32"
    dynamic: dict[str, object] | None = None


@dataclass(frozen=True)
class Gptq:
    """`group` None: one scale an output. `minus_one`: the stored zeros are the first version's."""

    bits: int
    group: int | None
    minus_one: bool = True

    name: ClassVar[str] = "gptq"
    parts: ClassVar[Mapping[str, bool]] = {"qweight": True, "qzeros": True, "scales": True, "g_idx": False}

    @staticmethod
    def read(raw: object) -> Gptq:
        """From `quantization_config`; CheckpointError for what would be read wrongly."""
        given = typed_json.from_json(Settings, raw, "quantization_config", ignore_unknown=True)
        version = given.checkpoint_format or given.format
        require("format", version, VERSIONS)
        require("pack_dtype", given.pack_dtype, ("int32",))
        require("bits", given.bits, BITS)
        changed = [rule for rule in given.dynamic or {} if not rule.startswith("-:")]  # the others only skip
        if changed:
            refuse(f"quantization_config: dynamic gives {changed[0]!r} another format")
        if given.group_size < 1 and given.group_size != -1:
            refuse(f"quantization_config: group_size {given.group_size} is neither a positive number nor -1")
        return Gptq(given.bits, None if given.group_size == -1 else given.group_size, version == VERSIONS[0])

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits, {f'groups of {self.group}' if self.group else 'one scale an output'}"

    def to_json(self, layers: str) -> dict[str, object]:
        """`quantization_config`, and quantize_config.json; `layers` is the path of the decoder's layers."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group or -1,
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "format": VERSIONS[0],
            "checkpoint_format": VERSIONS[0],
            "pack_dtype": "int32",
            "block_name_to_quantize": layers,
            "meta": {"quantizer": [f"edge-vla:{__version__}"]},
        }

    def shape(self, parts: Parts) -> tuple[int, int]:
        words, n = (*parts.shape("qweight"), 0, 0)[:2]
        return check_group(parts, (n, words * WORD // self.bits), self.group)

    def decode(self, parts: Parts) -> Integers:
        n, k = self.shape(parts)
        group = self.group or k
        count = k // group
        qweight = int32_part(parts, "qweight", (k * self.bits // WORD, n))
        qzeros = int32_part(parts, "qzeros", (count, n * self.bits // WORD))
        # Word by word, as gptqmodel adds it: a stored zero of 15 carries into its neighbour there too.
        zeros = unpack_words(qzeros + ONES[self.bits] if self.minus_one else qzeros, self.bits)
        scales = parts.load("scales", (count, n))
        groups = order(parts, "g_idx", k, count)
        return Integers(self.bits, unpack_words(qweight.T, self.bits), zeros.T, scales.T, groups)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape (outputs, inputs) fills whole words and whole groups."""
        n, k = shape
        return not (n * self.bits % WORD or k * self.bits % WORD or k % (self.group or k))

    def encode(self, packed: PackedWeight) -> dict[str, Tensor]:
        """A symmetric weight of these bits, group and a shape that `fits`, as its parts."""
        (n, k), scales = packed.shape, symmetric_scales(packed, self.bits)
        group = self.group or k
        stored_zero = torch.full((k // group, n), middle(self.bits) - self.minus_one, dtype=torch.uint8)
        return {
            "qweight": pack_words(unsigned(packed), self.bits).T.contiguous(),
            "qzeros": pack_words(stored_zero, self.bits),
            "scales": scales.T.contiguous(),
            "g_idx": in_order(k, group).int(),
        }
