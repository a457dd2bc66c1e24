"""Checks of a pass through two layers in one launch. The truth is the same network in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs
from edge_vla.model.decoder import rotary_tables, rotate
from edge_vla.quant import PackedWeight, Scheme, dequantise
from edge_vla.runtime.gpu.kernels import decode_pass
from edge_vla.runtime.gpu.kernels.decode_pass import PassLayer, PassNetwork
from edge_vla.runtime.gpu.kernels.pass_attention import Scratch
from edge_vla.runtime.gpu.kernels.weights import Weight, repack_int4, repack_int8
from edge_vla.spec import DecoderSpec

LAYERS: Final = 2


def _int4(packed: PackedWeight) -> Weight:
    return repack_int4(packed)


def _int8(packed: PackedWeight) -> Weight:
    return repack_int8(packed)


def _bf16(packed: PackedWeight) -> Weight:
    return packed.codes


FORMATS: Final[Mapping[str, Callable[[PackedWeight], Weight]]] = {"w4a16": _int4, "w8a16": _int8, "w16": _bf16}


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of a pass whose layers share their weights."""

    spec: DecoderSpec
    x: Tensor
    packed: tuple[PackedWeight, ...]  # qkv, o_proj, gate_up, down_proj
    norms: tuple[Tensor, Tensor, Tensor]  # before the first and the third product, after all
    keys: Tensor  # (layers, Hkv, slots, d)
    values: Tensor
    start: int


def whole_pass(inputs: RandomInputs, spec: DecoderSpec, rows: int, start: int, group: int, name: str) -> KernelCheck:
    """The normed rows, and the keys and values of the pass. `name` is one of FORMATS; `group` is int4's."""
    spec, length = replace(spec, layers=LAYERS), start + 2 * rows
    qkv, cache = spec.width + 2 * spec.kv_width, (LAYERS, spec.kv_heads, length, spec.head_width)
    shapes = (qkv, spec.width), (spec.width, spec.width), (2 * spec.mlp_width, spec.width), (spec.width, spec.mlp_width)
    packed = tuple(_weight(inputs, name, n, k, group) for n, k in shapes)
    norms = inputs.rows(spec.width), inputs.rows(spec.width), inputs.rows(spec.width)
    made = _Inputs(spec, inputs.rows(rows, spec.width), packed, norms, inputs.rows(*cache), inputs.rows(*cache), start)
    network, position = _network(made, name), torch.tensor([start], dtype=torch.int32, device=inputs.device)

    def run() -> list[Tensor]:
        keys, values = made.keys.clone(), made.values.clone()
        hidden = decode_pass.kernel(made.x, network, position, keys, values)
        return [hidden, keys[:, :, start : start + rows], values[:, :, start : start + rows]]

    kv_bytes = 2 * LAYERS * spec.kv_width * (start + rows) * made.x.element_size()
    return KernelCheck(
        run,
        partial(_by_torch, made, inputs.dtype),
        partial(_by_torch, made, torch.float64),
        LAYERS * sum(one.bytes for one in packed) + kv_bytes + 2 * made.x.nbytes,
        LAYERS * 2 * rows * sum(n * k for n, k in shapes),
        launch=lambda: decode_pass.kernel(made.x, network, position, made.keys, made.values),
    )


def _weight(inputs: RandomInputs, name: str, n: int, k: int, group: int) -> PackedWeight:
    if name == "w16":
        return PackedWeight(Scheme.BF16, (n, k), None, inputs.rows(n, k) * k**-0.5, None)
    made = inputs.packed(Scheme.INT4, n, k, group) if name == "w4a16" else inputs.packed(Scheme.INT8, n, k)
    assert made.scales is not None, "4 and 8 bits have scales"
    # Products about as large as their inputs, or attention would hang on single roundings.
    factor = 2.0 ** round(math.log2(k**-0.5 / float(dequantise(made).std())))
    return replace(made, scales=made.scales * factor)


def _network(made: _Inputs, name: str) -> PassNetwork:
    spec, device = made.spec, made.x.device
    qkv, o_proj, gate_up, down_proj = map(FORMATS[name], made.packed)
    layer = PassLayer((qkv, o_proj, gate_up, down_proj), made.norms[:2])
    positions = torch.arange(made.keys.shape[2], device=device)[None]
    cos, sin = (table[0, 0].contiguous() for table in rotary_tables(spec, positions, made.x.dtype))
    scratch = Scratch.allocate(spec.heads, spec.head_width, device)
    return PassNetwork.make([layer] * LAYERS, made.norms[2], spec.norm_eps, cos, sin, scratch)


def _by_torch(made: _Inputs, dtype: torch.dtype) -> list[Tensor]:
    spec, rows, device = made.spec, made.x.shape[0], made.x.device
    end, weights = made.start + rows, [dequantise(one, dtype) for one in made.packed]
    here, norms = slice(made.start, end), [one.to(dtype) for one in made.norms]
    cos, sin = (table[0, 0, here, None] for table in rotary_tables(spec, torch.arange(end, device=device)[None], dtype))
    mask = torch.arange(end, device=device) <= torch.arange(made.start, end, device=device)[:, None]
    stream, written = made.x.to(dtype), list[tuple[Tensor, Tensor]]()
    for index in range(LAYERS):
        normed = F.rms_norm(stream, stream.shape[-1:], norms[0], spec.norm_eps)
        x = F.linear(normed, weights[0]).view(rows, -1, spec.head_width)
        rotated = rotate(x[:, : -spec.kv_heads], cos, sin)
        new = rotated[:, spec.heads :].transpose(0, 1), x[:, -spec.kv_heads :].transpose(0, 1)
        written.append(new)
        old = made.keys[index, :, : made.start].to(dtype), made.values[index, :, : made.start].to(dtype)
        k, v = (torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
        gqa = spec.heads != spec.kv_heads
        out = F.scaled_dot_product_attention(
            rotated[:, : spec.heads].transpose(0, 1)[None], k[None], v[None], attn_mask=mask, enable_gqa=gqa
        )
        stream = stream + F.linear(out[0].transpose(0, 1).flatten(1), weights[1])
        normed = F.rms_norm(stream, stream.shape[-1:], norms[1], spec.norm_eps)
        gate, up = F.linear(normed, weights[2]).chunk(2, dim=-1)
        stream = stream + F.linear(F.silu(gate) * up, weights[3])
    hidden = F.rms_norm(stream, stream.shape[-1:], norms[2], spec.norm_eps)
    return [hidden, *(torch.stack(both) for both in zip(*written, strict=True))]
