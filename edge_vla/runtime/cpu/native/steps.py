"""What follows an action's first bin, in C: embeddings, passes and head together, one call for all further dimensions.

Knows bins, and structures of decoder.c. Knows nothing of token ids, drafts or robots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from edge_vla.runtime.cpu.native.decoder import NativeCache, NativeDecoder
from edge_vla.runtime.cpu.native.layout import Matrix, address
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.cpu.native.product import NativeHead


class _Actions(ctypes.Structure):
    _fields_ = (
        ("head", Matrix),
        *((name, ctypes.c_void_p) for name in ("embedding", "rows", "hidden", "logits")),
        ("bins", ctypes.c_int64),
    )


class NativeSteps:
    """Bins from position `start` on -> the best bin behind each of them, and its lead over the second.

    Then of so many `further` ones, each behind the one before. The bits are those of embedding, pass and head by
    themselves. `embedding` (bins, width) bfloat16 is read where it lies.
    """

    def __init__(self, decoder: NativeDecoder, head: NativeHead, embedding: Tensor) -> None:
        compiled = library()
        assert compiled is not None, "ask `fast` or `library` first"
        assert (embedding.is_contiguous(), embedding.dtype) == (True, torch.bfloat16)
        self._decoder, self._head, self._embedding = decoder, head, embedding
        self._function, self._bins, self._rows = compiled.edge_vla_follow, frozenset(range(head.outer)), 0
        self._reach(1)

    def __call__(
        self, given: Sequence[int], start: int, cache: NativeCache, further: int = 0
    ) -> tuple[list[int], list[float]]:
        rows, answers = len(given), len(given) + further
        assert start + answers <= cache.slots, f"a cache of {cache.slots} slots has no {start + answers}"
        assert set(given) <= self._bins, f"no bins: {given}"
        self._reach(answers)
        self._decoder.reach(rows, cache.slots)
        self._given[:rows] = list(given)
        self._decoder.run(
            self._function, rows, cache, ctypes.byref(self._actions), self._given,
            ctypes.c_int64(rows), ctypes.c_int64(start), ctypes.c_int64(further), self._best, self._leads,
        )  # fmt: skip
        return self._best[:answers], self._leads[:answers]

    def _reach(self, answers: int) -> None:
        """Room for so many, made anew only when there are more than before."""
        if answers <= self._rows:
            return
        matrix = self._head.matrix
        self._rows = answers
        self._room = [
            torch.empty(answers, width, dtype=torch.bfloat16) for width in (matrix.inner, matrix.inner, matrix.outer)
        ]
        self._actions = _Actions(matrix, address(self._embedding), *map(address, self._room), self._head.outer)
        self._given, self._best = (ctypes.c_int32 * answers)(), (ctypes.c_int32 * answers)()
        self._leads = (ctypes.c_float * answers)()
