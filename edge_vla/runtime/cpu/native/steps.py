"""The decode steps of an action in one C call: embeddings, decoder passes and head.

Knows bins. Knows nothing of token ids, drafts or robots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from edge_vla.runtime.cpu.native.decoder import NativeCache, NativeDecoder
from edge_vla.runtime.cpu.native.gemm import NativeHead
from edge_vla.runtime.cpu.native.layout import address
from edge_vla.runtime.cpu.native.structs import ActionHead


class NativeSteps:
    """Bins from position `start` on -> the best next bin of each, then of `further` greedy steps, and all margins.

    Bits equal those of embedding, pass and head called one by one. `embedding` (bins, width) bfloat16 is not copied.
    """

    def __init__(self, decoder: NativeDecoder, head: NativeHead, embedding: Tensor) -> None:
        assert (embedding.is_contiguous(), embedding.dtype) == (True, torch.bfloat16)
        self._decoder, self._head, self._embedding = decoder, head, embedding
        self._function, self._bins, self._rows = decoder.library.edge_vla_decode_steps, frozenset(range(head.n)), 0
        self._reserve(1)

    def __call__(
        self, given: Sequence[int], start: int, cache: NativeCache, further: int = 0
    ) -> tuple[list[int], list[float]]:
        rows, total = len(given), len(given) + further
        assert start + total <= cache.slots, f"a cache of {cache.slots} slots has no {start + total}"
        assert set(given) <= self._bins, f"expected bins below {self._head.n}, got {given}"
        self._reserve(total)
        self._decoder.reserve(rows, cache.slots)
        self._given[:rows] = list(given)
        self._decoder.run(
            self._function, rows, cache, ctypes.byref(self._actions), self._given,
            ctypes.c_int64(rows), ctypes.c_int64(start), ctypes.c_int64(further), self._best, self._margins,
        )  # fmt: skip
        return self._best[:total], self._margins[:total]

    def _reserve(self, total: int) -> None:
        if total <= self._rows:
            return
        matrix, self._rows = self._head.matrix, total
        self._buffers = [torch.empty(total, size, dtype=torch.bfloat16) for size in (matrix.k, matrix.k, matrix.n)]
        self._actions = ActionHead(matrix, address(self._embedding), *map(address, self._buffers), self._head.n)
        self._given, self._best = (ctypes.c_int32 * total)(), (ctypes.c_int32 * total)()
        self._margins = (ctypes.c_float * total)()
