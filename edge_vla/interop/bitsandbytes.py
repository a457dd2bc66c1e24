"""bitsandbytes' 4-bit state (NF4, FP4), with or without double quantisation, read.

A matrix is stored flat: `weight` has two codes a byte, the high one first, `weight.quant_map` says what each stands
for, and `weight.absmax` scales each block. Doubly quantised, absmax is itself codes into `weight.nested_quant_map`,
scaled by `weight.nested_absmax` and moved by an offset. A JSON blob holds the shape, the block sizes and the type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_vla.errors import CheckpointError
from edge_vla.interop.layout import Parts, Shape, one_of, refuse
from edge_vla.quant import PackedWeight

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
LEVELS = 16
NESTED_LEVELS = 256


@dataclass(frozen=True)
class Plain:
    """A matrix on a grid that we only read."""

    values: Tensor

    def weight(self) -> Tensor:
        return self.values

    def packed(self) -> PackedWeight | None:
        return None


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
    def read(raw: Mapping[str, Any]) -> BitsAndBytes:
        """From `quantization_config`; CheckpointError for LLM.int8, which keeps no 16-bit weights to go back to."""
        if not (raw.get("load_in_4bit") or raw.get("_load_in_4bit")):
            refuse("quantization_config: of bitsandbytes only load_in_4bit is read")
        one_of(raw, "bnb_4bit_quant_storage", ("uint8",), "uint8")
        return BitsAndBytes()

    def __str__(self) -> str:
        return f"{self.name}, 4 bits"

    def shape(self, parts: Parts) -> Shape:
        return State.read(parts).shape

    def decode(self, parts: Parts) -> Plain:
        state = State.read(parts)
        count = math.prod(state.shape)
        octets = parts.load("weight", (-(-count // 2), 1))
        blocks = -(-count // state.block)
        absmax = parts.load("weight.absmax", (blocks,))
        if octets.dtype != torch.uint8 or count % 2:
            raise CheckpointError(f"{parts.what}.weight must be bytes of two codes: download it again")
        if state.nested_block is not None:
            absmax = _nested(parts, absmax, state.nested_block, state.offset)
        elif absmax.dtype != torch.float32:
            raise CheckpointError(f"{parts.what}.weight.absmax is {absmax.dtype}, but its state knows no nesting")
        levels = parts.load("weight.quant_map", (LEVELS,)).float()
        pairs = torch.cartesian_prod(levels, levels)  # (256, 2): what each byte's two codes stand for
        values = pairs[octets.flatten().int()].flatten()
        scales = absmax.repeat_interleave(state.block)[:count]
        return Plain(values.mul_(scales).to(state.dtype).view(state.shape))


@dataclass(frozen=True)
class State:
    """The JSON blob."""

    shape: tuple[int, ...]
    block: int
    dtype: torch.dtype
    nested_block: int | None
    offset: float

    @staticmethod
    def read(parts: Parts) -> State:
        name = next((name for name in STATES if name in parts), None)
        if name is None:
            raise CheckpointError(f"{parts.what} lacks its quant_state: download it again")
        try:
            raw = json.loads(bytes(parts.load(name).tolist()))
            nested = raw.get("nested_blocksize")
            state = State(
                tuple(int(size) for size in raw["shape"]),
                int(raw["blocksize"]),
                TYPES[raw["dtype"]],
                None if nested is None else int(nested),
                float(raw.get("nested_offset") or 0.0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{parts.what}: its quant_state is malformed ({error!r}): download it again"
            ) from error
        if min(*state.shape, state.block, state.nested_block or 1) < 1 or not math.isfinite(state.offset):
            raise CheckpointError(f"{parts.what}: malformed quant_state ({raw}): download it again")
        return state


def _nested(parts: Parts, codes: Tensor, block: int, offset: float) -> Tensor:
    """(blocks,) uint8 -> (blocks,) float32."""
    absent = [part for part in ("weight.nested_absmax", "weight.nested_quant_map") if part not in parts]
    if absent or codes.dtype != torch.uint8:
        raise CheckpointError(f"{parts.what} says that it is doubly quantised, but lacks {absent or 'uint8 absmax'}")
    levels = parts.load("weight.nested_quant_map", (NESTED_LEVELS,)).float()
    scales = parts.load("weight.nested_absmax", (-(-len(codes) // block),)).repeat_interleave(block)
    return levels[codes.int()] * scales[: len(codes)] + offset
