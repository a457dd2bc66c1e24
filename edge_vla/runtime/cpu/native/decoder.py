"""The decoder in C, with the interface of `edge_vla.runtime.cpu.fused.FusedDecoder`: one call for a pass of all layers.

Knows shapes, structures and who owns their memory. Knows nothing of tokens or robots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.model.decoder import rotary_tables
from edge_vla.quant import PackedWeight
from edge_vla.runtime.cpu.native.layout import (
    BLOCK,
    STEP,
    TILE,
    Format,
    address,
    fits,
    fits_int,
    int_rows,
    matrix,
    planes,
    scratch_bytes,
    vector,
)
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.structs import (
    Cache,
    Decoder,
    DecoderLayer,
    DecoderWorkspace,
    Int8Inputs,
    Linear,
    Matrix,
    Pass,
)
from edge_vla.runtime.cpu.native.thread_pool import ThreadPool
from edge_vla.runtime.padding import padded
from edge_vla.spec import DecoderSpec

NAMES: Final = ("qkv", "o_proj", "gate_up", "down_proj")


@dataclass(frozen=True)
class NativeCache:
    """The KV cache in the layout of attention.h. Its length does not change a row's bits."""

    keys: Tensor  # (layers x kv heads, slots / 64, head width / 4, line) uint8
    values: Tensor  # (layers x kv heads, head width / 64, slots / 4, line) uint8
    cos: Tensor  # (slots, head width) float32, rounded to bfloat16 before
    sin: Tensor
    slots: int
    structure: Cache

    def copy_slot0(self, other: NativeCache) -> None:
        """Take over the first slot of `other`, and the empty ones that share its lines."""
        self.keys[:, 0] = other.keys[:, 0]
        self.values[:, :, 0] = other.values[:, :, 0]

    @staticmethod
    def allocate(spec: DecoderSpec, length: int) -> NativeCache:
        slots, width, heads = padded(length, BLOCK), spec.head_width, spec.layers * spec.kv_heads
        keys = torch.zeros(heads, slots // BLOCK, width // STEP, STEP * BLOCK * 2, dtype=torch.uint8)
        values = torch.zeros(heads, padded(width, BLOCK) // BLOCK, slots // STEP, STEP * BLOCK * 2, dtype=torch.uint8)
        cos, sin = (
            table[0, 0].float().contiguous() for table in rotary_tables(spec, torch.arange(slots)[None], torch.bfloat16)
        )
        structure = Cache(address(keys), address(values), slots, address(cos), address(sin))
        return NativeCache(keys, values, cos, sin, slots, structure)

    def first(self, length: int) -> NativeCache:
        assert length <= self.slots, f"a cache of {self.slots} slots has no {length}"
        return self


class NativeLayer:
    """One layer's weights in the layout of the C files."""

    def __init__(
        self,
        weights: Mapping[str, Sequence[PackedWeight]],
        norms: tuple[Tensor, Tensor],
        zero_point: int,
        int8_inputs: Int8Inputs = Int8Inputs.NEVER,
    ) -> None:
        parts = {
            name: [
                matrix(packed, zero_point, int8_inputs=int8_inputs if fits_int(packed) else Int8Inputs.NEVER)
                for packed in weights[name]
            ]
            for name in NAMES
        }
        first, second = (vector(norm, norm.numel()) for norm in norms)
        linears = [Linear((Matrix * 3)(*parts[name]), len(parts[name])) for name in NAMES]
        self.structure = DecoderLayer(*linears, address(first), address(second))
        self.kept = (parts, first, second)
        matrices = [part for members in parts.values() for part in members]
        self.multiplications = sum(part.n * part.k for part in matrices)
        self.int8_prefill = any(part.int8_inputs == Int8Inputs.IN_PREFILL for part in matrices)
        self.int8 = any(part.int8_inputs != Int8Inputs.NEVER for part in matrices)
        self.int16 = any(planes(part) > 1 for part in matrices)


def layer_fits(spec: DecoderSpec, weights: Mapping[str, Sequence[Format]]) -> bool:
    """Whether C can run such a layer: formats it knows; of several side by side, all but the last with N in 64s."""
    apart = [parts for parts in weights.values() if len({(part.scheme, part.group) for part in parts}) > 1]
    aligned = all(part.shape[0] % BLOCK == 0 for parts in apart for part in parts[:-1])
    fit = all(fits(part) for parts in weights.values() for part in parts)
    return aligned and fit and spec.head_width % STEP == 0


class NativeDecoder:
    """Embeddings (1, T, width) of rows from position `start`, bfloat16 -> normed hidden states of the `wanted` rows.

    The next pass overwrites the result. `batch_invariant`: a row's bits depend neither on the other rows nor on the
    number of threads. `prefill_matches_step`: nor on whether a prefill or a later pass computes the row.
    A pass that begins at the first row that no cache has is a prefill.
    """

    batch_invariant = True

    def __init__(
        self,
        spec: DecoderSpec,
        layers: Sequence[NativeLayer],
        norm: Tensor,
        compiled: ctypes.CDLL | None = None,
    ) -> None:
        self.spec, self.library = spec, compiled or require_library()
        self._decode = self.library.edge_vla_decode
        self._layers, self._norm = layers, vector(norm, spec.width)
        self._structures = (DecoderLayer * len(layers))(*(layer.structure for layer in layers))
        self._decoder = Decoder(
            len(layers), spec.width, spec.mlp_width, spec.heads, spec.kv_heads, spec.head_width, spec.norm_eps,
            ctypes.addressof(self._structures), address(self._norm),
        )  # fmt: skip
        self.prefill_matches_step = not any(layer.int8_prefill for layer in layers)
        self._multiplications = sum(layer.multiplications for layer in layers)
        self._pool, self._reserved = ThreadPool(), (0, 0, 0)
        self.first_row: NativeCache | None = None

    def begin(self, first: Tensor) -> None:
        """Compute the row (1, 1, width) that every prompt begins with once, for every cache made from now on.

        It sees no other row, so its keys and values are those that each prefill would compute, bit for bit.
        """
        cache = NativeCache.allocate(self.spec, 1)
        self.rows(first, 0, cache)
        self.first_row = cache

    def cache(self, length: int) -> NativeCache:
        cache = NativeCache.allocate(self.spec, length)
        if self.first_row is not None:
            cache.copy_slot0(self.first_row)
        return cache

    def rows(self, x: Tensor, start: int, cache: NativeCache, wanted: slice = slice(None)) -> Tensor:
        x = x.contiguous()
        rows, chosen = x.shape[1], range(x.shape[1])[wanted]
        self.reserve(rows, cache.slots)
        out = self._out[:, : len(chosen)]
        prefill = start <= (self.first_row is not None)
        this_pass = Pass(rows, start, chosen.start, chosen.stop, prefill)
        ends = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())
        self.run(self._decode, rows, cache, ctypes.byref(this_pass), *ends)
        return out

    def run(self, function: Callable[..., None], rows: int, cache: NativeCache, *arguments: object) -> None:
        """`function` of decoder.c with this decoder, its workspace, `cache` and `arguments`, on all threads."""
        shared = [ctypes.byref(one) for one in (self._decoder, self._workspace, cache.structure)]
        self._pool.run(lambda *thread: function(*shared, *arguments, *thread), rows * self._multiplications)

    def reserve(self, rows: int, slots: int) -> None:
        """Workspace for so many rows, slots and torch's threads; it only grows."""
        needed = (rows, slots, torch.get_num_threads())
        if all(now <= had for now, had in zip(needed, self._reserved, strict=True)):
            return
        rows, slots, threads = (max(pair) for pair in zip(needed, self._reserved, strict=True))
        spec = self.spec
        widths = [spec.width, spec.width + 2 * spec.kv_width, 2 * spec.mlp_width, spec.mlp_width]
        pitch, qkv, gate_up, hidden = (padded(width, BLOCK) for width in widths)
        buffers = [
            torch.zeros(rows, width, dtype=torch.bfloat16) for width in (pitch, pitch, qkv, pitch, gate_up, hidden)
        ]
        attention = TILE * slots * 6  # scores in float32, probabilities in bfloat16
        scratch = padded(max(scratch_bytes(rows), scratch_bytes(0) + attention), BLOCK)
        buffers.append(torch.zeros(threads, scratch, dtype=torch.uint8))
        widest = max(pitch, hidden)
        self._integers = (
            int_rows(rows, widest, 1 if any(layer.int8 for layer in self._layers) else 0),
            int_rows(rows, widest, 2 if any(layer.int16 for layer in self._layers) else 0),
        )
        *activations, last = map(address, buffers)
        self._workspace = DecoderWorkspace(*activations, pitch, qkv, gate_up, hidden, last, scratch, *self._integers)
        self._buffers, self._reserved = buffers, (rows, slots, threads)  # the workspace points into the buffers
        self._out = torch.zeros(1, rows, spec.width, dtype=torch.bfloat16)
