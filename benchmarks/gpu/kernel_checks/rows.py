"""Trials of the kernels between products, at any shape. Truths follow the same formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, Maker
from edge_vla.model.decoder import rotary_tables, rotate
from edge_vla.runtime.gpu.kernels import attention, gelu, head, layer_norm, quantise_rows, rms_norm, rotary, swiglu
from edge_vla.runtime.gpu.kernels.weights import Int8Rows, in_input_order
from edge_vla.spec import DecoderSpec

EPS = 1e-6


def norm(make: Maker, rows: int, width: int, parts: int) -> KernelCheck:
    """RMSNorm of a residual stream; `parts` partial sums to add, or 0 for a product that is already one."""
    x, weight = make.rows(rows, width), make.rows(width)
    added = make.wide(parts, rows, width) if parts else make.rows(rows, width)

    def truth() -> list[Tensor]:
        total = x.double() + (added.double().sum(0) if parts else added.double())
        return [total, weight.double() * total / (total.square().mean(-1, keepdim=True) + EPS).sqrt()]

    return KernelCheck(
        lambda: rms_norm.kernel(x, added, weight, EPS),
        lambda: rms_norm.reference(x, added, weight, EPS),
        truth,
        3 * x.nbytes + added.nbytes,
    )


def norm_int8(make: Maker, rows: int, width: int, *, for_int4: bool) -> KernelCheck:
    """RMSNorm whose rows are rounded to int8 at once; what the codes stand for is judged."""
    x, added, weight = make.rows(rows, width), make.rows(rows, width), make.rows(width)

    def tensors(normed: Callable[..., tuple[Tensor, Int8Rows]]) -> list[Tensor]:
        total, made = normed(x, added, weight, EPS, for_int4=for_int4)
        return [total, meant(made, width)]

    def truth() -> list[Tensor]:
        total = x.double() + added.double()
        return [total, weight.double() * total / (total.square().mean(-1, keepdim=True) + EPS).sqrt()]

    moved = 4 * x.nbytes - x.numel()
    return KernelCheck(
        partial(tensors, rms_norm.kernel_int8),
        partial(tensors, rms_norm.reference_int8),
        truth,
        moved,
        launch=lambda: rms_norm.kernel_int8(x, added, weight, EPS, for_int4=for_int4),
    )


def meant(rows: Int8Rows, width: int) -> Tensor:
    """The real rows (M, width) that codes stand for."""
    codes = in_input_order(rows.codes, width) if rows.for_int4 else rows.codes
    return codes * rows.scales[:, None]


def tower_norm(make: Maker, rows: int, width: int) -> KernelCheck:
    """LayerNorm of a tower's residual stream, with everything that can be added to it."""
    x, added = make.rows(rows, width), make.rows(rows, width)
    bias, layer_scale, weight, shift = (make.rows(width) for _ in range(4))

    def truth() -> list[Tensor]:
        total = x.double() + layer_scale.double() * (added.double() + bias.double())
        return [total, F.layer_norm(total, (width,), weight.double(), shift.double(), EPS)]

    return KernelCheck(
        lambda: layer_norm.kernel(x, added, bias, layer_scale, weight, shift, EPS),
        lambda: layer_norm.reference(x, added, bias, layer_scale, weight, shift, EPS),
        truth,
        4 * x.nbytes,
    )


def gate(make: Maker, rows: int, width: int, parts: int) -> KernelCheck:
    """SwiGLU of `parts` partial sums, or with 0 of a product that is already one."""
    gate_up = make.wide(parts, rows, 2 * width) if parts else make.rows(rows, 2 * width)

    def truth() -> list[Tensor]:
        left, right = (gate_up.double().sum(0) if parts else gate_up.double()).chunk(2, dim=-1)
        return [F.silu(left) * right]

    return KernelCheck(
        lambda: [swiglu.kernel(gate_up, make.dtype)],
        lambda: [swiglu.reference(gate_up, make.dtype)],
        truth,
        gate_up.nbytes + rows * width * 2,
    )


def gate_int8(make: Maker, rows: int, width: int, *, for_int4: bool) -> KernelCheck:
    """SwiGLU whose rows are rounded to int8 at once; what the codes stand for is judged."""
    gate_up = make.rows(rows, 2 * width)

    def tensors(gated: Callable[..., Int8Rows]) -> list[Tensor]:
        return [meant(gated(gate_up, make.dtype, for_int4=for_int4), width)]

    def truth() -> list[Tensor]:
        left, right = gate_up.double().chunk(2, dim=-1)
        return [F.silu(left) * right]

    moved = gate_up.nbytes + rows * width
    return KernelCheck(
        partial(tensors, swiglu.kernel_int8),
        partial(tensors, swiglu.reference_int8),
        truth,
        moved,
        launch=lambda: swiglu.kernel_int8(gate_up, make.dtype, for_int4=for_int4),
    )


def tower_gelu(make: Maker, rows: int, width: int) -> KernelCheck:
    """GELU with a bias."""
    x, bias = make.rows(rows, width), make.rows(width)
    return KernelCheck(
        lambda: [gelu.kernel(x, bias)],
        lambda: [gelu.reference(x, bias)],
        lambda: [F.gelu(x.double() + bias.double())],
        2 * x.nbytes,
    )


def int8_rows(make: Maker, rows: int, width: int, *, for_int4: bool) -> KernelCheck:
    """Rows to int8: exact, codes and scales."""
    x = make.rows(rows, width)

    def tensors(quantise: Callable[..., Int8Rows]) -> list[Tensor]:
        made = quantise(x, for_int4=for_int4)
        return [made.codes, made.scales]

    reference = partial(tensors, quantise_rows.reference)
    return KernelCheck(partial(tensors, quantise_rows.kernel), reference, reference, x.nbytes + x.numel(), exact=True)


def turn(make: Maker, spec: DecoderSpec, rows: int, start: int, length: int, parts: int) -> KernelCheck:
    """Queries turned, keys and values in their slots, all other slots as they were."""
    wide = (spec.heads + 2 * spec.kv_heads) * spec.head_width
    qkv = make.wide(parts, rows, wide) if parts else make.rows(rows, wide)
    cos, sin = (
        table[0, 0] for table in rotary_tables(spec, torch.arange(length, device=make.device)[None], make.dtype)
    )
    keys, values = (make.rows(spec.kv_heads, length, spec.head_width) for _ in range(2))
    at = torch.tensor([start], dtype=torch.int32, device=make.device)

    def tensors(turned: Callable[..., Tensor]) -> list[Tensor]:
        room = keys.clone(), values.clone()
        return [turned(qkv, cos, sin, at, *room), *room]

    def truth() -> list[Tensor]:
        x = (qkv.double().sum(0) if parts else qkv.double()).view(rows, -1, spec.head_width)
        here = slice(start, start + rows)
        turned = rotate(x[:, : -spec.kv_heads], cos[here, None].double(), sin[here, None].double())
        room = keys.double(), values.double()
        room[0][:, here] = turned[:, spec.heads :].transpose(0, 1)
        room[1][:, here] = x[:, -spec.kv_heads :].transpose(0, 1)
        return [turned[:, : spec.heads], *room]

    return KernelCheck(
        partial(tensors, rotary.kernel),
        partial(tensors, rotary.reference),
        truth,
        qkv.nbytes + rows * wide * 2,
        exact=True,
        launch=lambda: rotary.kernel(qkv, cos, sin, at, keys, values),  # into slots that all who are judged overwrite
    )


def attend(make: Maker, spec: DecoderSpec, rows: int, start: int, length: int) -> KernelCheck:
    """Slots after the last row's hold what nobody may read."""
    query = make.rows(rows, spec.heads, spec.head_width)
    keys, values = (make.rows(spec.kv_heads, length, spec.head_width) for _ in range(2))
    end = start + rows
    keys[:, end:], values[:, end:] = torch.nan, torch.inf
    at = torch.tensor([start], dtype=torch.int32, device=make.device)
    mask = torch.arange(end, device=make.device) <= torch.arange(start, end, device=make.device)[:, None]

    def mixed(dtype: torch.dtype) -> list[Tensor]:
        asked, known, told = (x.to(dtype)[None] for x in (query.transpose(0, 1), keys[:, :end], values[:, :end]))
        grouped = spec.heads != spec.kv_heads
        out = F.scaled_dot_product_attention(asked, known, told, attn_mask=mask, enable_gqa=grouped)
        return [out[0].transpose(0, 1).flatten(1)]

    moved = 2 * query.nbytes + 4 * spec.kv_width * end
    operations = 4 * spec.width * sum(range(start + 1, end + 1))
    return KernelCheck(
        lambda: [attention.kernel(query, keys, values, at)],
        partial(mixed, make.dtype),
        partial(mixed, torch.float64),
        moved,
        operations,
    )


def choose(make: Maker, rows: int, width: int, bins: int) -> KernelCheck:
    """The chosen bin's true logit beside the best, what its lead says of the second, and whose embedding came."""
    hidden, weight, embeddings = make.rows(rows, width), make.rows(bins, width), make.rows(bins, width)
    logits = hidden.double() @ weight.double().T

    def tensors(chosen: Callable[..., head.Choice]) -> list[Tensor]:
        choice = chosen(hidden, weight, embeddings)
        named = choice.bins.long().clamp(0, bins - 1)
        logit = logits.gather(1, named[:, None])[:, 0]
        second = (logit - choice.margins).to(make.dtype)
        return [logit.to(make.dtype), second, choice.embedded - embeddings[named]]

    def truth() -> list[Tensor]:
        best = logits.topk(2, dim=1).values
        return [best[:, 0], best[:, 1], torch.zeros_like(hidden)]

    return KernelCheck(
        partial(tensors, head.kernel),
        partial(tensors, head.reference),
        truth,
        weight.nbytes + 3 * hidden.nbytes,
        2 * rows * weight.numel(),
        launch=lambda: head.kernel(hidden, weight, embeddings),
    )
