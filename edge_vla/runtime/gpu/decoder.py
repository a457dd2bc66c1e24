"""The decoder as a chain of kernel calls: nine launches a layer, the residual stream handed from norm to norm.

Each product's output goes unsummed into the kernel that reads it next, which adds the parts, and the stream, in
passing. Arithmetic otherwise follows `edge_vla.model.decoder`. Knows shapes and kernels; knows nothing of graphs,
tokens or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.model import Cache
from edge_vla.model.decoder import rotary_tables
from edge_vla.runtime.gpu.config import Kernels
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.products import PLAIN, Product, Reads
from edge_vla.spec import DecoderSpec

ALIGNED: Final = 4  # int32 in 16 bytes


@dataclass(frozen=True)
class KernelLayer:
    qkv: Product
    o_proj: Product
    gate_up: Product
    down_proj: Product
    input_layernorm: Tensor  # (width,)
    post_attention_layernorm: Tensor

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.o_proj, self.gate_up, self.down_proj

    @property
    def bytes(self) -> int:
        norms = (self.input_layernorm, self.post_attention_layernorm)
        return sum(one.bytes for one in self.products) + sum(norm.nbytes for norm in norms)


class KernelDecoder:
    """Embeddings (1, T, width) of rows from position `start` -> normed hidden states.

    A row sees the cache's slots up to its own position. Up to eight rows go through the kernels for a few rows.
    `prefill_matches_step`: a prefill computes a row as a step does, but for the order of sums.
    """

    batch_invariant = False  # products in 16 bits are torch's, where a row's bits may depend on how many there are

    def __init__(
        self, spec: DecoderSpec, layers: Sequence[KernelLayer], norm: Tensor, kernels: Kernels, positions: int
    ) -> None:
        self.spec, self.layers, self.norm, self.kernels = spec, layers, norm, kernels
        self.prefill_matches_step = not any(product.rounds for layer in layers for product in layer.products)
        device, dtype = norm.device, norm.dtype
        cos, sin = rotary_tables(spec, torch.arange(positions, device=device)[None], dtype)
        self.cos, self.sin = cos[0, 0].contiguous(), sin[0, 0].contiguous()  # (positions, head width)
        # A position as kernels read it: at an address that stays, 16 bytes apart, so that one compiled form serves all.
        self.positions = torch.arange(positions, dtype=torch.int32, device=device)[:, None].repeat(1, ALIGNED)

    @property
    def bytes(self) -> int:
        tables = (self.cos, self.sin, self.positions, self.norm)
        return sum(layer.bytes for layer in self.layers) + sum(tensor.nbytes for tensor in tables)

    def cache(self, length: int) -> Cache:
        return Cache.allocate(self.spec, 1, length, self.norm.dtype, self.norm.device)

    def rows(self, x: Tensor, start: int, cache: Cache, wanted: slice = slice(None)) -> Tensor:
        """Of the `wanted` rows only: the last layer leaves out what nobody reads."""
        chosen = range(x.shape[1])[wanted]
        return self.run(x[0], start, cache, chosen)[None]

    def run(self, x: Tensor, start: int, cache: Cache, wanted: range) -> Tensor:
        """(T, width) -> (len(wanted), width). `x` is only read."""
        stream, added = x, None
        for index, layer in enumerate(self.layers):
            last = wanted if index == len(self.layers) - 1 and len(wanted) < x.shape[0] else None
            stream, added = self._layer(layer, stream, added, start, cache.keys[index, 0], cache.values[index, 0], last)
        _, hidden = self.kernels.rms_norm(stream, added, self.norm, self.spec.norm_eps)
        return hidden

    def choose(self, hidden: Tensor, rows: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(n, width) -> best bins (n,) int32 and their leads (n,) float32, NaN where a logit is not finite."""
        parts = [hidden[first : first + GEMV_ROWS] for first in range(0, hidden.shape[0], GEMV_ROWS)]
        chosen = [self.kernels.choose(part, rows, embeddings) for part in parts]
        if len(chosen) == 1:
            return chosen[0].bins, chosen[0].margins
        return torch.cat([one.bins for one in chosen]), torch.cat([one.margins for one in chosen])

    def _layer(
        self,
        layer: KernelLayer,
        stream: Tensor,
        added: Tensor | None,
        start: int,
        keys: Tensor,
        values: Tensor,
        wanted: range | None,
    ) -> tuple[Tensor, Tensor]:
        """The stream before this layer's MLP, and what the MLP adds to it."""
        gemv = stream.shape[0] <= GEMV_ROWS
        stream, normed = self._norm(stream, added, layer.input_layernorm, _reads(layer.qkv, gemv))
        query = self.kernels.rotary(_times(layer.qkv, normed, gemv), self.cos, self.sin, self._at(start), keys, values)
        if wanted is not None:
            rows = slice(wanted.start, wanted.stop)
            query, stream, start = query[rows], stream[rows], start + wanted.start
            gemv = stream.shape[0] <= GEMV_ROWS
        mixed = self._as(_reads(layer.o_proj, gemv), self.kernels.attention(query, keys, values, self._at(start)))
        output = _times(layer.o_proj, mixed, gemv)
        stream, normed = self._norm(stream, output, layer.post_attention_layernorm, _reads(layer.gate_up, gemv))
        gated = self._gate(_times(layer.gate_up, normed, gemv), _reads(layer.down_proj, gemv))
        return stream, _times(layer.down_proj, gated, gemv)

    def _at(self, position: int) -> Tensor:
        return self.positions[position, :1]

    def _norm(self, stream: Tensor, added: Tensor | None, weight: Tensor, reads: Reads) -> tuple[Tensor, Any]:
        if reads == PLAIN:
            return self.kernels.rms_norm(stream, added, weight, self.spec.norm_eps)
        return self.kernels.rms_norm_int8(stream, added, weight, self.spec.norm_eps, for_int4=reads == "int8 for int4")

    def _gate(self, gate_up: Tensor, reads: Reads) -> Any:
        if reads == PLAIN:
            return self.kernels.swiglu(gate_up, self.norm.dtype)
        return self.kernels.swiglu_int8(gate_up, self.norm.dtype, for_int4=reads == "int8 for int4")

    def _as(self, reads: Reads, x: Tensor) -> Any:
        return x if reads == PLAIN else self.kernels.quantise(x, for_int4=reads == "int8 for int4")


def _reads(product: Product, gemv: bool) -> Reads:
    return PLAIN if gemv else product.reads


def _times(product: Product, x: Any, gemv: bool) -> Tensor:
    return product.gemv(x) if gemv else product.gemm(x)
