"""The one routine that torch's own kernels lack, in C: int4 codes to bfloat16. Without a compiler, torch's operators.

Knows the packed layout. Knows nothing of when it pays; `edge_vla.runtime.kernels.probe` measures that.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from edge_vla.runtime.compiled import compiled

SOURCE = Path(__file__).with_name("nibbles.c")
BLOCK = 64  # rows in one block of torch's packed layout on AVX-512
WORTH_A_THREAD = 1 << 20  # values; below, handing out the work costs more than it saves


def widen(codes: Tensor, scales: Tensor, group: int, first: int, last: int, out: Tensor) -> Tensor:
    """Blocks `first` .. `last` - 1 of a packed weight -> out (K, (last - first) x 64) bfloat16, contiguous.

    codes (N / 64, K, 32) uint8; scales (K / group, N, 2) bfloat16.
    """
    found = library()
    if found is None:
        return _widen(codes, scales, group, first, last, out)
    inner, outer, threads = codes.shape[1], scales.shape[1], torch.get_num_threads()

    def part(begin: int, end: int) -> None:
        found.edge_vla_widen_int4(
            codes.data_ptr(), scales.data_ptr(), out.data_ptr(),
            inner, outer, group, begin, end, first, out.shape[1],
        )  # fmt: skip

    if threads == 1 or out.numel() < WORTH_A_THREAD:
        part(first, last)
    else:
        cuts = [first + (last - first) * i // threads for i in range(threads + 1)]
        list(_pool(threads).map(part, cuts[:-1], cuts[1:]))  # ctypes lets go of the interpreter's lock
    return out


def _widen(codes: Tensor, scales: Tensor, group: int, first: int, last: int, out: Tensor) -> Tensor:
    """The same in torch's operators: the oracle, and the way without a compiler."""
    lines = codes[first:last].transpose(0, 1)  # (K, blocks, 32)
    inner, blocks, half = lines.shape
    places = out.view(inner, blocks, 2, half)
    places[:, :, 0] = lines & 15
    places[:, :, 1] = lines >> 4
    scale = scales[:, first * 2 * half : last * 2 * half, 0]
    grouped = out.view(inner // group, group, blocks * 2 * half)
    grouped.sub_(8).mul_(scale[:, None])
    return out


@cache
def library() -> ctypes.CDLL | None:
    """The compiled routine, or None where there is no compiler."""
    loaded = compiled("nibbles", [SOURCE], [SOURCE], ())
    if loaded is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        loaded.edge_vla_widen_int4.argtypes = [pointer, pointer, pointer, *[number] * 7]
        loaded.edge_vla_widen_int4.restype = None
    return loaded


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "edge-vla-widen")
