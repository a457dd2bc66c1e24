"""bitsandbytes' 4-bit state (NF4, FP4), with or without double quantisation, read.

A matrix is stored flat: `weight` has two codes a byte, the high one first, `weight.quant_map` says what each stands
for, and `weight.absmax` scales each block. Doubly quantised, absmax is itself codes into `weight.nested_quant_map`,
scaled by `weight.nested_absmax` and moved by an offset. A JSON blob holds the shape, the block sizes and the type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edge_vla import typed_json
from edge_vla.errors import CheckpointError
from edge_vla.interop.layout import Parts, Shape, refuse, require
from edge_vla.quant import PackedWeight

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
LEVELS = 16
NESTED_LEVELS = 256


@dataclass(frozen=True)
class Plain:
    """A matrix on a grid that none of our formats has."""

    values: Tensor

    def weight(self) -> Tensor:
        return self.values

    def packed(self) -> PackedWeight | None:
        return None


@dataclass(frozen=True)
class Settings:
    """What is read of `quantization_config`."""

    load_in_4bit: bool = False
    _load_in_4bit: bool = False
    bnb_4bit_quant_storage: str | None = None


@dataclass(frozen=True)
class BitsAndBytes:
    name: ClassVar[str] = "bitsandbytes"
    parts: ClassVar[Mapping[str, bool]] = {
        "weight": True,
        "weight.absmax": True,
        "weight.quant_map": True,
        "weight.nested_absmax": False,
        "weight.nested_quant_map": False,
        **dict.fromkeys(STATES, False),
    }
    group: ClassVar[int | None] = None

    @staticmethod
    def read(raw: object) -> BitsAndBytes:
        """From `quantization_config`; CheckpointError for LLM.int8, which keeps no 16-bit weights to go back to."""
        given = typed_json.from_json(Settings, raw, "quantization_config", ignore_unknown=True)
        if not (given.load_in_4bit or given._load_in_4bit):
            refuse("quantization_config: of bitsandbytes only load_in_4bit is read")
        require("bnb_4bit_quant_storage", given.bnb_4bit_quant_storage, ("uint8", None))
        return BitsAndBytes()

    def __str__(self) -> str:
        return f"{self.name}, 4 bits"

    def shape(self, parts: Parts) -> Shape:
        return State.read(parts).shape

    def decode(self, parts: Parts) -> Plain:
        state = State.read(parts)
        count = math.prod(state.shape)
        octets = parts.load("weight", (-(-count // 2), 1))
        blocks = -(-count // state.blocksize)
        absmax = parts.load("weight.absmax", (blocks,))
        if octets.dtype != torch.uint8 or count % 2:
            raise CheckpointError(f"{parts.what}.weight must be bytes of two codes: download it again")
        if state.nested_blocksize is not None:
            absmax = _nested(parts, absmax, state.nested_blocksize, state.nested_offset or 0.0)
        elif absmax.dtype != torch.float32:
            raise CheckpointError(f"{parts.what}.weight.absmax is {absmax.dtype}, but its state knows no nesting")
        levels = parts.load("weight.quant_map", (LEVELS,)).float()
        pairs = torch.cartesian_prod(levels, levels)  # (256, 2): what each byte's two codes stand for
        values = pairs[octets.flatten().int()].flatten()
        scales = absmax.repeat_interleave(state.blocksize)[:count]
        return Plain(values.mul_(scales).to(TYPES[state.dtype]).view(state.shape))


@dataclass(frozen=True)
class State:
    """What is read of `quant_state`, a JSON object in a tensor of bytes."""

    shape: tuple[int, ...]
    blocksize: int
    dtype: Literal["bfloat16", "float16", "float32"]
    nested_blocksize: int | None = None
    nested_offset: float | None = None

    @staticmethod
    def read(parts: Parts) -> State:
        name = next((name for name in STATES if name in parts), None)
        if name is None:
            raise CheckpointError(f"{parts.what} lacks its quant_state: download it again")
        try:
            raw = typed_json.parse(bytes(parts.load(name).tolist()))
            state = typed_json.from_json(State, raw, "quant_state", ignore_unknown=True)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{parts.what}: malformed ({error}): download it again") from error
        if min(*state.shape, state.blocksize, state.nested_blocksize or 1) < 1:
            raise CheckpointError(f"{parts.what}: malformed {state}: download it again")
        return state


def _nested(parts: Parts, codes: Tensor, block: int, offset: float) -> Tensor:
    """(blocks,) uint8 -> (blocks,) float32."""
    absent = [part for part in ("weight.nested_absmax", "weight.nested_quant_map") if part not in parts]
    if absent or codes.dtype != torch.uint8:
        raise CheckpointError(f"{parts.what} says that it is doubly quantised, but lacks {absent or 'uint8 absmax'}")
    levels = parts.load("weight.nested_quant_map", (NESTED_LEVELS,)).float()
    scales = parts.load("weight.nested_absmax", (-(-len(codes) // block),)).repeat_interleave(block)
    return levels[codes.int()] * scales[: len(codes)] + offset
