"""The decoder as a chain of kernel calls, the residual stream handed from norm to norm.

Eight launches per layer; or one launch for all layers of a pass of up to GEMV_ROWS rows.
A product's partial sums go to the kernel that reads them next, which adds them, and the stream, on the way. Arithmetic
otherwise follows `edge_vla.model.decoder`. Knows shapes and kernels; knows nothing of graphs, tokens or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.model import Cache
from edge_vla.model.decoder import rotary_tables
from edge_vla.runtime.gpu.config import Kernels
from edge_vla.runtime.gpu.kernels.decode_pass import PassLayer, PassNetwork
from edge_vla.runtime.gpu.kernels.pass_attention import Scratch
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.kernels.weights import PLAIN, RowFormat
from edge_vla.runtime.gpu.products import Product
from edge_vla.spec import DecoderSpec

ALIGNED: Final = 4  # int32 values in 16 bytes


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
    """Embeddings (1, T, width) of rows from position `start` on -> normed hidden states (1, T, width).

    A row attends to the cache's slots up to its own position. Up to GEMV_ROWS rows go through the gemv kernels.
    `prefill_matches_step`: a prefill computes a row as a step does, but for the order of sums.
    """

    batch_invariant = False  # products in 16 bits are torch's, whose bits may depend on the number of rows

    def __init__(
        self,
        spec: DecoderSpec,
        layers: Sequence[KernelLayer],
        norm: Tensor,
        kernels: Kernels,
        positions: int,
    ) -> None:
        self.spec, self.layers, self.norm, self.kernels = spec, layers, norm, kernels
        self.prefill_matches_step = not any(product.rounds_prefill for layer in layers for product in layer.products)
        device, dtype = norm.device, norm.dtype
        cos, sin = rotary_tables(spec, torch.arange(positions, device=device)[None], dtype)
        self.cos, self.sin = cos[0, 0].contiguous(), sin[0, 0].contiguous()  # (positions, head width)
        # Kernels read a position from a fixed address; 16 bytes apart, so that one compiled kernel serves all of them.
        self.positions = torch.arange(positions, dtype=torch.int32, device=device)[:, None].repeat(1, ALIGNED)
        self.scratch = Scratch.allocate(spec.heads, spec.head_width, device)
        self.whole: PassNetwork | None = None  # set by `steps`: such a pass is one launch

    @property
    def bytes(self) -> int:
        tables = (self.cos, self.sin, self.positions, self.norm)
        whole = 0 if self.whole is None else self.whole.bytes
        return (
            sum(layer.bytes for layer in self.layers) + sum(one.nbytes for one in tables) + self.scratch.bytes + whole
        )

    def network(self) -> PassNetwork:
        """All layers as one launch reads them. BackendError, which says why, where they do not allow it."""
        made = list[PassLayer]()
        for index, layer in enumerate(self.layers):
            qkv, o_proj, gate_up, down_proj = (product.weight for product in layer.products)
            if qkv is None or o_proj is None or gate_up is None or down_proj is None:
                raise BackendError(f"layer {index} has a product of several formats")
            norms = layer.input_layernorm, layer.post_attention_layernorm
            made.append(PassLayer((qkv, o_proj, gate_up, down_proj), norms))
        return PassNetwork.make(made, self.norm, self.spec.norm_eps, self.cos, self.sin, self.scratch)

    def gave_up(self) -> bool:
        """Whether programs of a persistent kernel waited in vain for each other since this was last asked. Waits."""
        return self.whole is not None and self.whole.gave_up()

    def cache(self, length: int) -> Cache:
        return Cache.allocate(self.spec, 1, length, self.norm.dtype, self.norm.device)

    def rows(self, x: Tensor, start: int, cache: Cache, wanted: slice = slice(None)) -> Tensor:
        """Hidden states of the `wanted` rows only: the last layer leaves out the others."""
        chosen = range(x.shape[1])[wanted]
        return self.run(x[0], start, cache, chosen)[None]

    def run(self, x: Tensor, start: int, cache: Cache, wanted: range) -> Tensor:
        """(T, width) -> (len(wanted), width). `x` is only read."""
        if self.whole is not None and x.shape[0] <= GEMV_ROWS:
            return self.at_once(self.whole, x, start, cache)[wanted.start : wanted.stop]
        return self.chain(x, start, cache, wanted)

    def at_once(self, whole: PassNetwork, x: Tensor, start: int, cache: Cache) -> Tensor:
        """All of at most GEMV_ROWS rows, in one launch."""
        return self.kernels.decode_pass(x, whole, self._at(start), cache.keys[:, 0], cache.values[:, 0])

    def chain(self, x: Tensor, start: int, cache: Cache, wanted: range) -> Tensor:
        """As `run`, in a launch for each kernel."""
        stream, added = x, None
        for index, layer in enumerate(self.layers):
            last = wanted if index == len(self.layers) - 1 and len(wanted) < x.shape[0] else None
            stream, added = self._layer(layer, stream, added, start, cache.keys[index, 0], cache.values[index, 0], last)
        hidden = self.kernels.rms_norm(stream, added, self.norm, self.spec.norm_eps)[1]
        assert isinstance(hidden, Tensor), "16-bit rows were asked for"
        return hidden

    def choose(self, hidden: Tensor, head: Tensor, first: int, fed: int, *to: Tensor) -> None:
        """As the kernel, of any number of rows (n, width)."""
        for at in range(0, hidden.shape[0], GEMV_ROWS):
            self.kernels.choose(hidden[at : at + GEMV_ROWS], head, first + at, fed, *to)

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
        use, eps = self.kernels, self.spec.norm_eps
        stream, normed = use.rms_norm(stream, added, layer.input_layernorm, eps, _row_format(layer.qkv, stream))
        qkv = _times(layer.qkv, normed, stream)
        mixed = self._mixed(qkv, start, keys, values, wanted)
        if wanted is not None:
            stream = stream[wanted.start : wanted.stop]
        row_format = _row_format(layer.o_proj, stream)
        rows_in = mixed if row_format == PLAIN else use.quantise_rows(mixed, row_format)
        output = _times(layer.o_proj, rows_in, stream)
        row_format = _row_format(layer.gate_up, stream)
        stream, normed = use.rms_norm(stream, output, layer.post_attention_layernorm, eps, row_format)
        gate_up = _times(layer.gate_up, normed, stream)
        gated = use.swiglu(gate_up, self.norm.dtype, _row_format(layer.down_proj, stream))
        return stream, _times(layer.down_proj, gated, stream)

    def _mixed(self, qkv: Tensor, start: int, keys: Tensor, values: Tensor, wanted: range | None) -> Tensor:
        """What the `wanted` rows attend to (M, H d); the keys and values of all rows go to the cache."""
        use, wanted, given = self.kernels, wanted or range(qkv.shape[-2]), (qkv, self.cos, self.sin, self._at(start))
        if qkv.shape[-2] <= GEMV_ROWS:
            return use.pass_attention(*given, keys, values, self.scratch)[wanted.start : wanted.stop]
        return use.prefill_attention(*given, keys, values, self._at(wanted.start), len(wanted))

    def _at(self, position: int) -> Tensor:
        return self.positions[position, :1]


def _row_format(product: Product, stream: Tensor) -> RowFormat:
    """The rows that `product` reads in a pass over as many rows as the stream has."""
    return PLAIN if stream.shape[0] <= GEMV_ROWS else product.row_format


def _times(product: Product, rows: Any, stream: Tensor) -> Tensor:
    return product.gemv(rows) if stream.shape[0] <= GEMV_ROWS else product.gemm(rows)
