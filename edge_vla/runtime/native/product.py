"""One product by itself in C, as the head's."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edge_vla.quant import PackedWeight
from edge_vla.runtime.native.layout import BLOCK, PIECE, address, matrix
from edge_vla.runtime.native.library import library
from edge_vla.runtime.padding import padded


class NativeProduct:
    """x (n, K) bfloat16 -> x W^T (n, N) bfloat16, for a weight that `fits` and whose K needs no padding.

    A row's bits depend on that row alone.
    """

    def __init__(self, packed: PackedWeight, compiled: ctypes.CDLL | None = None) -> None:
        compiled = compiled or library()
        assert compiled is not None, "ask `fast` or `library` first"
        self._call, self._matrix, self.outer = compiled.edge_vla_multiply, matrix(packed), packed.shape[0]
        assert self._matrix.inner == packed.shape[1], f"{packed.shape[1]} inputs are not in fours"
        self._own = torch.empty(0, dtype=torch.uint8)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, needed = x.shape[0], PIECE * BLOCK * 2 + padded(x.shape[0], BLOCK) * BLOCK * 4
        if self._own.numel() < needed:
            self._own = torch.empty(needed, dtype=torch.uint8)
        out = torch.empty(rows, self._matrix.outer, dtype=torch.bfloat16)
        self._call(
            ctypes.byref(self._matrix), ctypes.c_void_p(address(x)), ctypes.c_int64(rows),
            ctypes.c_void_p(address(out)), ctypes.c_void_p(address(self._own)),
        )  # fmt: skip
        return out[:, : self.outer]
