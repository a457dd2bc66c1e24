"""Checks of the kernels between products, at any shape. The truth follows the same formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs
from edge_vla.model.decoder import rotary_tables, rotate
from edge_vla.runtime.gpu.kernels import (
    activations,
    head,
    layer_norm,
    pass_attention,
    prefill_attention,
    quantise_rows,
    rms_norm,
)
from edge_vla.runtime.gpu.kernels.weights import PLAIN, Int8Rows, RowFormat, Rows, in_input_order
from edge_vla.spec import DecoderSpec

EPS = 1e-6


def norm(inputs: RandomInputs, rows: int, width: int, parts: int, row_format: RowFormat = PLAIN) -> KernelCheck:
    """RMSNorm of a residual stream; `parts` partial sums to add, or 0 for a finished product."""
    x, weight, added = inputs.rows(rows, width), inputs.rows(width), inputs.partial_sums(parts, rows, width)

    def run(function: Callable[..., tuple[Tensor, Rows]]) -> list[Tensor]:
        total, normed = function(x, added, weight, EPS, row_format)
        return [total, as_tensor(normed, width)]

    def truth() -> list[Tensor]:
        total = x.double() + (added.double().sum(0) if parts else added.double())
        return [total, weight.double() * total / (total.square().mean(-1, keepdim=True) + EPS).sqrt()]

    return KernelCheck(
        partial(run, rms_norm.kernel),
        partial(run, rms_norm.reference),
        truth,
        2 * x.nbytes + _row_bytes(x, row_format) + added.nbytes,
        launch=lambda: rms_norm.kernel(x, added, weight, EPS, row_format),
    )


def tower_norm(inputs: RandomInputs, rows: int, width: int, parts: int, row_format: RowFormat = PLAIN) -> KernelCheck:
    """LayerNorm of a tower's residual stream, with everything that can be added to it; `parts` as in `norm`."""
    x, added = inputs.rows(rows, width), inputs.partial_sums(parts, rows, width)
    bias, layer_scale, weight, shift = (inputs.rows(width) for _ in range(4))

    def run(function: Callable[..., tuple[Tensor, Rows]]) -> list[Tensor]:
        total, normed = function(x, added, bias, layer_scale, weight, shift, EPS, row_format)
        return [total, as_tensor(normed, width)]

    def truth() -> list[Tensor]:
        product = added.double().sum(0) if parts else added.double()
        total = x.double() + layer_scale.double() * (product + bias.double())
        return [total, F.layer_norm(total, (width,), weight.double(), shift.double(), EPS)]

    return KernelCheck(
        partial(run, layer_norm.kernel),
        partial(run, layer_norm.reference),
        truth,
        2 * x.nbytes + added.nbytes + _row_bytes(x, row_format),
        launch=lambda: layer_norm.kernel(x, added, bias, layer_scale, weight, shift, EPS, row_format),
    )


def swiglu(inputs: RandomInputs, rows: int, width: int, parts: int, row_format: RowFormat = PLAIN) -> KernelCheck:
    """SwiGLU of `parts` partial sums, or with 0 of a finished product."""
    gate_up = inputs.partial_sums(parts, rows, 2 * width)

    def run(function: Callable[..., Rows]) -> list[Tensor]:
        return [as_tensor(function(gate_up, inputs.dtype, row_format), width)]

    def truth() -> list[Tensor]:
        gate, up = (gate_up.double().sum(0) if parts else gate_up.double()).chunk(2, dim=-1)
        return [F.silu(gate) * up]

    return KernelCheck(
        partial(run, activations.kernel_swiglu),
        partial(run, activations.reference_swiglu),
        truth,
        gate_up.nbytes + rows * width * (2 if row_format == PLAIN else 1),
        launch=lambda: activations.kernel_swiglu(gate_up, inputs.dtype, row_format),
    )


def tower_gelu(inputs: RandomInputs, rows: int, width: int, parts: int, row_format: RowFormat = PLAIN) -> KernelCheck:
    """GELU with a bias; `parts` as in `norm`."""
    x, bias = inputs.partial_sums(parts, rows, width), inputs.rows(width)
    return KernelCheck(
        lambda: [as_tensor(activations.kernel_gelu(x, bias, row_format), width)],
        lambda: [as_tensor(activations.reference_gelu(x, bias, row_format), width)],
        lambda: [F.gelu((x.double().sum(0) if parts else x.double()) + bias.double())],
        x.nbytes + rows * width * (2 if row_format == PLAIN else 1),
        launch=lambda: activations.kernel_gelu(x, bias, row_format),
    )


def int8_rows(inputs: RandomInputs, rows: int, width: int, row_format: RowFormat) -> KernelCheck:
    """Rows to int8: codes and scales, exactly."""
    x = inputs.rows(rows, width)

    def run(function: Callable[..., Rows]) -> list[Tensor]:
        made = function(x, row_format)
        assert isinstance(made, Int8Rows), row_format
        return [made.codes, made.scales]

    reference = partial(run, quantise_rows.reference)
    moved_bytes = x.nbytes + _row_bytes(x, row_format)
    return KernelCheck(partial(run, quantise_rows.kernel), reference, reference, moved_bytes, exact=True)


def as_tensor(rows: Rows, width: int) -> Tensor:
    """The real rows (M, width) that `rows` stand for."""
    if not isinstance(rows, Int8Rows):
        return rows
    codes = in_input_order(rows.codes, width) if rows.for_int4 else rows.codes
    return codes * rows.scales[:, None]


def _row_bytes(x: Tensor, row_format: RowFormat) -> int:
    return x.nbytes if row_format == PLAIN else x.numel()


@dataclass(frozen=True)
class Pass:
    """Rows of a product from position `start` on, and a cache that holds NaN and infinity from there on."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    position: Tensor
    keys: Tensor
    values: Tensor
    start: int

    @staticmethod
    def made(inputs: RandomInputs, spec: DecoderSpec, rows: int, start: int, length: int, parts: int) -> Pass:
        qkv = inputs.partial_sums(parts, rows, (spec.heads + 2 * spec.kv_heads) * spec.head_width)
        tables = rotary_tables(spec, torch.arange(length, device=inputs.device)[None], inputs.dtype)
        keys, values = (inputs.rows(spec.kv_heads, length, spec.head_width) for _ in range(2))
        keys[:, start:], values[:, start:] = torch.nan, torch.inf
        position = torch.tensor([start], dtype=torch.int32, device=inputs.device)
        return Pass(qkv, tables[0][0, 0], tables[1][0, 0], position, keys, values, start)

    def check(self, spec: DecoderSpec, attend: Callable[..., Tensor], wanted: range) -> KernelCheck:
        """Of `attend`, which takes the tensors in order: what the wanted rows attend to, and what is in the cache."""
        end = self.start + self.qkv.shape[-2]
        given = self.qkv, self.cos, self.sin, self.position

        def run() -> list[Tensor]:
            cache = self.keys.clone(), self.values.clone()
            mixed = attend(*given, *cache)
            assert all(bool(one[:, end:].isfinite().logical_not().all()) for one in cache), "slots behind the pass"
            return [mixed, *(one[:, :end] for one in cache)]

        return KernelCheck(
            run,
            lambda: self.by_torch(spec, self.keys.dtype, wanted),
            lambda: self.by_torch(spec, torch.float64, wanted),
            self.qkv.nbytes + 4 * spec.kv_width * end + 2 * len(wanted) * spec.width,
            4 * spec.width * sum(range(self.start + wanted.start + 1, self.start + wanted.stop + 1)),
            launch=lambda: attend(*given, self.keys, self.values),  # `run` overwrites the same slots
        )

    def by_torch(self, spec: DecoderSpec, dtype: torch.dtype, wanted: range) -> list[Tensor]:
        rows, parts = self.qkv.shape[-2], self.qkv.dim() == 3
        end, device = self.start + rows, self.qkv.device
        x = (self.qkv.sum(0) if parts else self.qkv).to(dtype).view(rows, -1, spec.head_width)
        cos, sin = (table[self.start : end, None].to(dtype) for table in (self.cos, self.sin))
        rotated = rotate(x[:, : -spec.kv_heads], cos, sin)
        k = torch.cat([self.keys[:, : self.start].to(dtype), rotated[:, spec.heads :].transpose(0, 1)], dim=1)
        v = torch.cat([self.values[:, : self.start].to(dtype), x[:, -spec.kv_heads :].transpose(0, 1)], dim=1)
        q, gqa = rotated[wanted.start : wanted.stop, : spec.heads].transpose(0, 1), spec.heads != spec.kv_heads
        last = self.start + torch.arange(wanted.start, wanted.stop, device=device)
        mask = torch.arange(end, device=device) <= last[:, None]
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=gqa)
        return [out[0].transpose(0, 1).flatten(1), k, v]


def attend(
    inputs: RandomInputs,
    spec: DecoderSpec,
    rows: int,
    start: int,
    length: int,
    parts: int,
    wanted: range | None = None,
) -> KernelCheck:
    """A pass of many rows, of which all are wanted or some."""
    wanted = wanted or range(rows)
    begin = torch.tensor([wanted.start], dtype=torch.int32, device=inputs.device)
    kernel: Callable[..., Tensor] = partial(prefill_attention.kernel, begin=begin, count=len(wanted))
    return Pass.made(inputs, spec, rows, start, length, parts).check(spec, kernel, wanted)


def attend_pass(inputs: RandomInputs, spec: DecoderSpec, rows: int, start: int, length: int, parts: int) -> KernelCheck:
    """A pass of few rows."""
    scratch = pass_attention.Scratch.allocate(spec.heads, spec.head_width, inputs.device)
    kernel: Callable[..., Tensor] = partial(pass_attention.kernel, scratch=scratch)
    return Pass.made(inputs, spec, rows, start, length, parts).check(spec, kernel, range(rows))


def choose(inputs: RandomInputs, rows: int, width: int, bins: int, first: int = 0, fed: int = 0) -> KernelCheck:
    """The chosen bin's true logit against the best, and what its margin says of the second."""
    hidden, weight = inputs.rows(rows, width), inputs.rows(bins, width)
    embeddings, to = inputs.rows(bins, width), inputs.rows(fed + 2, width)
    given = torch.zeros(fed + 2, dtype=torch.int32, device=inputs.device)
    logits = hidden.double() @ weight.double().T
    outputs = inputs.float32(2, first + rows + 2)

    def run(function: Callable[..., None]) -> list[Tensor]:
        written = [one.clone() for one in (given, to, outputs)]
        function(hidden, weight, first, fed, embeddings, *written)
        fed_bins, fed_rows, out = written
        here, dims = slice(first, first + rows), slice(first, max(first, min(fed, first + rows)))
        assert torch.equal(fed_bins[dims], out[0, dims].int()), "what the next pass is given"
        assert torch.equal(fed_rows[dims], embeddings[fed_bins[dims]])
        assert torch.equal(fed_bins[dims.stop :], given[dims.stop :]), "what it is not given"
        assert torch.equal(fed_rows[dims.stop :], to[dims.stop :])
        assert torch.equal(out[:, here.stop :], outputs[:, here.stop :])
        logit = logits.gather(1, out[0, here].long().clamp(0, bins - 1)[:, None])[:, 0]
        return [logit.to(inputs.dtype), (logit - out[1, here]).to(inputs.dtype)]

    def truth() -> list[Tensor]:
        best = logits.topk(2, dim=1).values
        return [best[:, 0], best[:, 1]]

    return KernelCheck(
        partial(run, head.kernel),
        partial(run, head.reference),
        truth,
        weight.nbytes + hidden.nbytes,
        2 * rows * weight.numel(),
        launch=lambda: head.kernel(hidden, weight, first, fed, embeddings, given, to, outputs),
    )
