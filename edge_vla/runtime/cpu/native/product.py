"""One product by itself in C, and the head made of it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edge_vla.quant import PackedWeight
from edge_vla.runtime.cpu.native.layout import BLOCK, NEVER, PIECE, Rounded, address, fits_rounded, matrix
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.padding import padded


class NativeProduct:
    """x (n, K) bfloat16 -> x W^T (n, N) bfloat16, for a weight that `fits` and whose K needs no padding.

    A row's bits depend on that row alone. Unless `rounds` is NEVER inputs are rounded to 8 bits; W8A8's always are.
    """

    def __init__(self, packed: PackedWeight, compiled: ctypes.CDLL | None = None, *, rounds: int = NEVER) -> None:
        compiled = compiled or library()
        assert compiled is not None, "ask `fast` or `library` first"
        assert rounds == NEVER or fits_rounded(packed), "its inputs cannot be rounded"
        self._call, self.outer = compiled.edge_vla_multiply, packed.shape[0]
        self.matrix = matrix(packed, rounds=rounds)
        assert self.matrix.inner == packed.shape[1], f"{packed.shape[1]} inputs are not in fours"
        self._own, self._rows = torch.empty(0, dtype=torch.uint8), 0
        self._rounded: Rounded | None = None

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], self.matrix.outer, dtype=torch.bfloat16)
        self.into(out, x)
        return out[:, : self.outer]

    def into(self, out: Tensor, x: Tensor) -> None:
        """As a call, into rows of the width that its outputs are padded to."""
        x = x.contiguous()
        self._reach(x.shape[0])
        self._call(
            ctypes.byref(self.matrix), ctypes.c_void_p(address(x)), ctypes.c_int64(x.shape[0]),
            ctypes.c_void_p(address(out)), ctypes.c_void_p(address(self._own)),
            None if self._rounded is None else ctypes.byref(self._rounded),
        )  # fmt: skip

    def _reach(self, rows: int) -> None:
        """Room for so many rows, made anew only when there are more than before."""
        if rows <= self._rows:
            return
        self._rows = rows
        self._own = torch.empty(PIECE * BLOCK * 2 + padded(rows, BLOCK) * BLOCK * 4, dtype=torch.uint8)
        if self.matrix.rounds != NEVER:
            self._rounded = Rounded.room(rows, self.matrix.inner)


class NativeHead(NativeProduct):
    """The product by the head's action rows, and what is best of it."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__(packed)
        compiled = library()
        assert compiled is not None, "ask `fast` or `library` first"
        self._lead, self._logits = compiled.edge_vla_lead, torch.empty(0, self.matrix.outer, dtype=torch.bfloat16)

    def choose(self, hidden: Tensor) -> tuple[list[int], list[float]]:
        """(n, K) -> the best output of each row, and its lead over the second: NaN where one is not finite."""
        rows = hidden.shape[0]
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.matrix.outer, dtype=torch.bfloat16)
            self._best, self._leads = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
        self.into(self._logits, hidden)
        self._lead(
            ctypes.c_void_p(address(self._logits)), ctypes.c_int64(rows), ctypes.c_int64(self.outer),
            ctypes.c_int64(self.matrix.outer), ctypes.c_void_p(address(self._best)),
            ctypes.c_void_p(address(self._leads)),
        )  # fmt: skip
        return self._best[:rows].tolist(), self._leads[:rows].tolist()
