"""int4 weights in torch's packed layout to bfloat16: the one routine that torch's CPU kernels lack."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from edge_vla.runtime.cpu.native.library import library

BLOCK = 64  # outputs in one block of torch's packed layout for AVX-512
WORTH_A_THREAD = 1 << 20  # values; below, handing out the work costs more than it saves


def dequantise_int4(codes: Tensor, scales: Tensor, group: int, first: int, last: int, out: Tensor) -> Tensor:
    """Blocks `first` .. `last` - 1 of codes (N / 64, K, 32) uint8 with scales (K / group, N, 2) bfloat16.

    Written to out (K, (last - first) x 64) bfloat16, contiguous, and returned. Without a compiler torch does it.
    """
    found = library()
    if found is None:
        return dequantise_int4_torch(codes, scales, group, first, last, out)
    (_, k, _), n, threads = codes.shape, scales.shape[1], torch.get_num_threads()
    pointers = [c_void_p(tensor.data_ptr()) for tensor in (codes, scales, out)]

    def part(begin: int, end: int) -> None:
        found.edge_vla_dequantise_int4(*pointers, *map(c_int64, (k, n, group, begin, end, first, out.shape[1])))

    if threads == 1 or out.numel() < WORTH_A_THREAD:
        part(first, last)
    else:
        cuts = [first + (last - first) * i // threads for i in range(threads + 1)]
        list(_pool(threads).map(part, cuts[:-1], cuts[1:]))  # ctypes releases the interpreter's lock
    return out


def dequantise_int4_torch(codes: Tensor, scales: Tensor, group: int, first: int, last: int, out: Tensor) -> Tensor:
    """The same in torch's operators: the oracle, and the fallback without a compiler."""
    lines = codes[first:last].transpose(0, 1)  # (K, blocks, 32)
    k, blocks, half = lines.shape
    places = out.view(k, blocks, 2, half)
    places[:, :, 0] = lines & 15
    places[:, :, 1] = lines >> 4
    scale = scales[:, first * BLOCK : last * BLOCK, 0]
    out.view(k // group, group, blocks * BLOCK).sub_(8).mul_(scale[:, None])
    return out


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "edge-vla-int4")
