"""The decoder in C: the face of `edge_vla.runtime.cpu.fused.FusedDecoder`, one call a pass of all layers.

Knows shapes, structures of decoder.c and who owns their memory. Knows nothing of tokens or robots.
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
    IN_PREFILL,
    NEVER,
    PIECE,
    STEP,
    Format,
    Matrix,
    Rounded,
    address,
    fits,
    fits_rounded,
    matrix,
    vector,
)
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.cpu.native.team import Team
from edge_vla.runtime.padding import padded
from edge_vla.spec import DecoderSpec

SIDE_BY_SIDE: Final = 3  # most products of one input whose formats differ
TILE: Final = 3  # rows that attend together
NAMES: Final = ("qkv", "o_proj", "gate_up", "down_proj")


class _Linear(ctypes.Structure):
    _fields_ = (("part", Matrix * SIDE_BY_SIDE), ("parts", ctypes.c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in NAMES),
        ("input_norm", ctypes.c_void_p),
        ("attention_norm", ctypes.c_void_p),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "mlp_width", "heads", "kv_heads", "head_width")),
        ("norm_eps", ctypes.c_double),
        ("layer", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
    )


class _Desk(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "normed", "qkv", "mixed", "gate_up", "hidden")),
        *((name, ctypes.c_int64) for name in ("pitch", "qkv_pitch", "gate_up_pitch", "hidden_pitch")),
        ("own", ctypes.c_void_p),
        ("own_bytes", ctypes.c_int64),
        ("whole", Rounded),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("slots", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
    )


class _Pass(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "start", "wanted", "wanted_end"))


@dataclass(frozen=True)
class NativeCache:
    """Keys and values as attention.h keeps them. A row sees what lies before it, however long the cache is."""

    keys: Tensor  # (layers x kv heads, slots / 64, head width / 4, line) uint8
    values: Tensor  # (layers x kv heads, head width / 64, slots / 4, line) uint8
    cos: Tensor  # (slots, head width) float32, rounded to bfloat16 before
    sin: Tensor
    slots: int
    structure: _Cache

    @staticmethod
    def allocate(spec: DecoderSpec, length: int) -> NativeCache:
        slots, width, heads = padded(length, BLOCK), spec.head_width, spec.layers * spec.kv_heads
        keys = torch.zeros(heads, slots // BLOCK, width // STEP, STEP * BLOCK * 2, dtype=torch.uint8)
        values = torch.zeros(heads, padded(width, BLOCK) // BLOCK, slots // STEP, STEP * BLOCK * 2, dtype=torch.uint8)
        cos, sin = (
            table[0, 0].float().contiguous() for table in rotary_tables(spec, torch.arange(slots)[None], torch.bfloat16)
        )
        structure = _Cache(address(keys), address(values), slots, address(cos), address(sin))
        return NativeCache(keys, values, cos, sin, slots, structure)

    def first(self, length: int) -> NativeCache:
        assert length <= self.slots, f"a cache of {self.slots} slots has no {length}"
        return self


class NativeLayer:
    """One layer's weights where C finds them."""

    def __init__(
        self, products: Mapping[str, Sequence[PackedWeight]], norms: tuple[Tensor, Tensor], rounds: int = NEVER
    ) -> None:
        parts = {
            name: [matrix(packed, rounds=rounds if fits_rounded(packed) else NEVER) for packed in products[name]]
            for name in NAMES
        }
        first, second = (vector(norm, norm.numel()) for norm in norms)
        linears = [_Linear((Matrix * SIDE_BY_SIDE)(*parts[name]), len(parts[name])) for name in NAMES]
        self.structure = _Layer(*linears, address(first), address(second))
        self.kept = (parts, first, second)
        self.multiplications = sum(part.outer * part.inner for members in parts.values() for part in members)
        self.rounds_prefill = any(part.rounds == IN_PREFILL for members in parts.values() for part in members)
        self.rounds = any(part.rounds != NEVER for members in parts.values() for part in members)


def layer_fits(spec: DecoderSpec, products: Mapping[str, Sequence[Format]]) -> bool:
    """Whether C can run such a layer: formats it knows; of several side by side, all but the last in 64s."""
    apart = [parts for parts in products.values() if len({(part.scheme, part.group) for part in parts}) > 1]
    whole = all(part.shape[0] % BLOCK == 0 for parts in apart for part in parts[:-1])
    return whole and spec.head_width % STEP == 0 and all(fits(part) for parts in products.values() for part in parts)


class NativeDecoder:
    """Embeddings (1, T, width) of rows from position `start`, bfloat16 -> normed hidden states of the `wanted` rows.

    These are lent: the next pass overwrites them.

    `batch_invariant`: a row's bits depend neither on its neighbours nor on their number nor on the number of threads. `prefill_matches_step`:
    nor on whether it is computed in a prefill or in a later pass.
    """

    batch_invariant = True

    def __init__(self, spec: DecoderSpec, layers: Sequence[NativeLayer], norm: Tensor) -> None:
        compiled = library()
        assert compiled is not None, "ask `fast` or `library` first"
        self.spec, self._decode = spec, compiled.edge_vla_decode
        self._layers, self._norm = layers, vector(norm, spec.width)
        self._structures = (_Layer * len(layers))(*(layer.structure for layer in layers))
        self._decoder = _Decoder(
            len(layers), spec.width, spec.mlp_width, spec.heads, spec.kv_heads, spec.head_width, spec.norm_eps,
            ctypes.addressof(self._structures), address(self._norm),
        )  # fmt: skip
        self.prefill_matches_step = not any(layer.rounds_prefill for layer in layers)
        self._multiplications = sum(layer.multiplications for layer in layers)
        self._team, self._room = Team(), (0, 0, 0)
        self._desk, self._whole, self._buffers = _Desk(), Rounded(), list[Tensor]()
        self._out = torch.empty(0)

    def cache(self, length: int) -> NativeCache:
        return NativeCache.allocate(self.spec, length)

    def rows(self, x: Tensor, start: int, cache: NativeCache, wanted: slice = slice(None)) -> Tensor:
        x = x.contiguous()
        rows, chosen = x.shape[1], range(x.shape[1])[wanted]
        self.reach(rows, cache.slots)
        out = self._out[:, : len(chosen)]
        step = _Pass(rows, start, chosen.start, chosen.stop)
        ends = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())
        self.run(self._decode, rows, cache, ctypes.byref(step), *ends)
        return out

    def run(self, function: Callable[..., None], rows: int, cache: NativeCache, *given: object) -> None:
        """A function of decoder.c whose passes have so many rows: on this decoder, over `cache`, with what is given."""
        shared = [ctypes.byref(one) for one in (self._decoder, self._desk, cache.structure)]
        self._team.run(lambda *member: function(*shared, *given, *member), rows * self._multiplications)

    def reach(self, rows: int, slots: int) -> None:
        """Buffers for so many rows, slots and threads, made anew only when there are more than before."""
        members = torch.get_num_threads()
        if all(now <= had for now, had in zip((rows, slots, members), self._room, strict=True)):
            return
        rows, slots, members = (max(pair) for pair in zip((rows, slots, members), self._room, strict=True))
        spec = self.spec
        widths = [spec.width, spec.width + 2 * spec.kv_width, 2 * spec.mlp_width, spec.mlp_width]
        pitch, qkv, gate_up, hidden = (padded(width, BLOCK) for width in widths)
        buffers = [
            torch.zeros(rows, width, dtype=torch.bfloat16) for width in (pitch, pitch, qkv, pitch, gate_up, hidden)
        ]
        panel, sums, board = PIECE * BLOCK * 2, rows * BLOCK * 4, TILE * slots * 6
        own = padded(panel + max(sums, board), BLOCK)
        buffers.append(torch.zeros(members, own, dtype=torch.uint8))
        rounded = any(layer.rounds for layer in self._layers)
        whole = Rounded.room(rows, max(pitch, hidden)) if rounded else Rounded()
        self._desk = _Desk(*map(address, buffers[:-1]), pitch, qkv, gate_up, hidden, address(buffers[-1]), own, whole)
        self._whole = whole  # keeps its tensors
        self._buffers, self._room = buffers, (rows, slots, members)
        self._out = torch.zeros(1, rows, spec.width, dtype=torch.bfloat16)
