"""One decoder layer at a time over all calibration rows, each linear quantised before the next one reads its input.

A layer runs in four stages, one for each tensor that linears read: the normed input (q, k, v), the mixed heads (o),
the normed middle (gate, up) and the gated middle (down). So every linear is calibrated on what its quantised
predecessors give it. Memory is one layer, one Hessian and the rows. Knows nothing of formats: `replace` makes the new
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.calibration.sequences import CPU, Rows
from edge_vla.checkpoint import TensorSource
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.model.decoder import DecoderLayer, Step, rotary_tables
from edge_vla.spec import DecoderSpec

ROWS_AT_ONCE: Final = 2048
BLOCK: Final = 1024  # of a Hessian's side
STAGES: Final = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)

# Linears and their input's Hessian -> new weights, or modules to put in the linears' place.
Replace = Callable[[Sequence[str], Tensor], Mapping[str, Tensor | nn.Module]]
Weights = Sequence[Tensor]  # for each `Rows` the weight of each row: (n, T) or (1, T) float32


@dataclass(frozen=True)
class Chunk:
    """Some sequences of one `Rows`: `hidden` is a view, `step` holds the rows' positions and mask."""

    index: int
    part: slice
    hidden: Tensor  # (n, T, width)
    step: Step


def chunks(spec: DecoderSpec, rows: Sequence[Rows]) -> Iterator[Chunk]:
    """All rows, about `ROWS_AT_ONCE` at a time, always in the same order."""
    for index, same in enumerate(rows):
        size = max(1, ROWS_AT_ONCE // same.length)
        for start in range(0, len(same.hidden), size):
            hidden = same.hidden[start : start + size]
            yield Chunk(index, slice(start, start + size), hidden, causal(spec, hidden))


def causal(spec: DecoderSpec, hidden: Tensor) -> Step:
    """Positions, rotary tables and causal mask of whole sequences (n, T, width)."""
    batch, length, _ = hidden.shape
    slots = torch.arange(length, device=hidden.device)
    positions = slots.expand(batch, length)
    cos, sin = rotary_tables(spec, positions, hidden.dtype)
    return Step(positions, cos, sin, slots <= positions[:, None, :, None])


def attend(layer: DecoderLayer, x: Tensor, step: Step) -> Tensor:
    """The layer's attention on its input x (n, T, width), over a KV cache of just these rows."""
    spec = layer.self_attn.spec
    shape = (len(x), spec.kv_heads, x.shape[1], spec.head_width)
    keys, values = x.new_zeros(shape), x.new_zeros(shape)
    out: Tensor = layer.self_attn(layer.input_layernorm(x), step, keys, values)
    return out


def load_layer(
    source: TensorSource, spec: DecoderSpec, index: int, dtype: torch.dtype, device: torch.device = CPU
) -> DecoderLayer:
    with torch.device("meta"):
        layer = DecoderLayer(spec)
    weights = {name: source.load(layer_prefix(index) + name).to(device, dtype) for name in layer.state_dict()}
    layer.load_state_dict(weights, assign=True)
    return layer.eval().requires_grad_(False)


@torch.inference_mode()
def quantise_layer(layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], replace: Replace) -> None:
    """Stage by stage: sum the Hessian of the stage's input, put the new weights in, go on with them.

    `weights[stage]` weighs the rows at that stage. The rows become the next layer's input, in place. Everything runs
    on the rows' device; what `replace` returns may be on any.
    """
    attention, mlp, spec = layer.self_attn, layer.mlp, layer.self_attn.spec
    linears = {name: layer.get_submodule(name) for stage in STAGES for name in stage}
    shapes = spec.linears()

    def quantise_stage(stage: int, read: Callable[[Chunk], Tensor]) -> None:
        moments = torch.zeros([shapes[STAGES[stage][0]][1]] * 2, device=rows[0].hidden.device)
        for chunk in chunks(spec, rows):
            counted = weights[stage][chunk.index].expand(rows[chunk.index].hidden.shape[:2])[chunk.part]
            add_moments_(moments, (read(chunk).float() * counted.sqrt()[..., None]).flatten(0, 1))
        mirror_(moments)
        for name, new in replace(STAGES[stage], moments).items():
            if isinstance(new, Tensor):
                linears[name].weight = nn.Parameter(new.to(moments.device), requires_grad=False)
            else:
                layer.set_submodule(name, new)
                linears[name] = new

    quantise_stage(0, lambda chunk: layer.input_layernorm(chunk.hidden))
    attention.o_proj = nn.Identity()  # so that the layer's own code returns what o_proj reads
    mixed = [torch.empty_like(same.hidden) for same in rows]
    for chunk in chunks(spec, rows):
        mixed[chunk.index][chunk.part] = attend(layer, chunk.hidden, chunk.step)
    attention.o_proj = linears["self_attn.o_proj"]
    quantise_stage(1, lambda chunk: mixed[chunk.index][chunk.part])
    for chunk in chunks(spec, rows):
        chunk.hidden.add_(attention.o_proj(mixed[chunk.index][chunk.part]))
    mixed.clear()
    quantise_stage(2, lambda chunk: layer.post_attention_layernorm(chunk.hidden))
    mlp.down_proj = nn.Identity()
    quantise_stage(3, lambda chunk: mlp(layer.post_attention_layernorm(chunk.hidden)))
    mlp.down_proj = linears["mlp.down_proj"]
    for chunk in chunks(spec, rows):
        chunk.hidden.add_(mlp(layer.post_attention_layernorm(chunk.hidden)))


def add_moments_(moments: Tensor, rows: Tensor) -> None:
    """Add X'X of (n, K) rows X except for the blocks below the diagonal, which halves the arithmetic."""
    for start in range(0, len(moments), BLOCK):
        moments[start : start + BLOCK, start:].addmm_(rows[:, start : start + BLOCK].T, rows[:, start:])


def mirror_(moments: Tensor) -> None:
    """Fill in the blocks that `add_moments_` left out."""
    for start in range(BLOCK, len(moments), BLOCK):
        moments[start : start + BLOCK, :start] = moments[:start, start : start + BLOCK].T


@torch.inference_mode()
def forward_(layer: DecoderLayer, rows: Sequence[Rows]) -> None:
    """Turn a layer's input rows into its output, in place."""
    for chunk in chunks(layer.self_attn.spec, rows):
        chunk.hidden.add_(attend(layer, chunk.hidden, chunk.step))
        chunk.hidden.add_(layer.mlp(layer.post_attention_layernorm(chunk.hidden)))
