"""One gemm by itself in C, and the action head made of it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edge_vla.quant import PackedWeight
from edge_vla.runtime.cpu.native.layout import (
    BLOCK,
    address,
    fits_int,
    int_rows,
    matrix,
    planes,
    scratch_bytes,
    zero_point_of,
)
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.structs import Int8Inputs, IntRows
from edge_vla.runtime.padding import padded


class NativeGemm:
    """x (M, K) bfloat16 -> x W^T (M, N) bfloat16, for a weight that `fits` and whose K is a multiple of 4.

    Batch-invariant. Inputs are taken in 8 bits unless `int8_inputs` is NEVER; those of W8A8 always.
    """

    def __init__(
        self,
        packed: PackedWeight,
        compiled: ctypes.CDLL | None = None,
        *,
        int8_inputs: Int8Inputs = Int8Inputs.NEVER,
    ) -> None:
        assert int8_inputs == Int8Inputs.NEVER or fits_int(packed), "the int8 gemm cannot run this weight"
        self._library = compiled or require_library()
        self.n = packed.shape[0]
        self.matrix = matrix(packed, zero_point_of(self._library), int8_inputs=int8_inputs)
        self._planes = 1 if int8_inputs != Int8Inputs.NEVER else planes(self.matrix)
        assert self.matrix.k == packed.shape[1], f"K is {packed.shape[1]}, expected a multiple of 4"
        self._scratch, self._rows = torch.empty(0, dtype=torch.uint8), 0
        self._integers: IntRows | None = None

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], self.matrix.n, dtype=torch.bfloat16)
        self.into(out, x)
        return out[:, : self.n]

    def into(self, out: Tensor, x: Tensor) -> None:
        """As a call, into out (M, N padded to 64s)."""
        x = x.contiguous()
        self._reserve(x.shape[0])
        self._library.edge_vla_gemm(
            ctypes.byref(self.matrix), ctypes.c_void_p(address(x)), ctypes.c_int64(x.shape[0]),
            ctypes.c_void_p(address(out)), ctypes.c_void_p(address(self._scratch)),
            None if self._integers is None else ctypes.byref(self._integers),
        )  # fmt: skip

    def _reserve(self, rows: int) -> None:
        if rows <= self._rows:
            return
        self._rows = rows
        self._scratch = torch.empty(scratch_bytes(padded(rows, BLOCK)), dtype=torch.uint8)
        if self._planes:
            self._integers = int_rows(rows, self.matrix.k, self._planes)


class NativeHead(NativeGemm):
    """The gemm by the head's action rows, and the best action of each row."""

    def __init__(self, packed: PackedWeight, compiled: ctypes.CDLL | None = None) -> None:
        super().__init__(packed, compiled)
        self._logits = torch.empty(0, self.matrix.n, dtype=torch.bfloat16)

    def choose(self, hidden: Tensor) -> tuple[list[int], list[float]]:
        """(M, K) -> the best output of each row and its margin: NaN where a logit is not finite."""
        rows = hidden.shape[0]
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.matrix.n, dtype=torch.bfloat16)
            self._best, self._margins = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
        self.into(self._logits, hidden)
        self._library.edge_vla_argmax(
            ctypes.c_void_p(address(self._logits)), ctypes.c_int64(rows), ctypes.c_int64(self.n),
            ctypes.c_int64(self.matrix.n), ctypes.c_void_p(address(self._best)),
            ctypes.c_void_p(address(self._margins)),
        )  # fmt: skip
        return self._best[:rows].tolist(), self._margins[:rows].tolist()
