"""Threads that run one C function together and wait for each other inside it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch

WORTH_A_THREAD: Final = 1 << 26  # multiplications; below, handing out the work costs more than it saves
MAX_THREADS: Final = 256  # started when first needed

Work = Callable[[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None]


class ThreadPool:
    """`run` calls `work(barrier, index, count)` on each of `count` threads: torch's number, or fewer for little work.

    One run at a time. Each pool has its own threads: two runs that share some could wait for each other for ever.
    """

    def __init__(self) -> None:
        self._barrier = torch.zeros(2, dtype=torch.int32)  # `Barrier` of threads.h
        self._others = ThreadPoolExecutor(MAX_THREADS, "edge-vla")

    def run(self, work: Work, multiplications: int) -> None:
        threads = max(1, min(torch.get_num_threads(), multiplications // WORTH_A_THREAD, MAX_THREADS))
        barrier, count = ctypes.c_void_p(self._barrier.data_ptr()), ctypes.c_int64(threads)
        others = [self._others.submit(work, barrier, ctypes.c_int64(index), count) for index in range(1, threads)]
        work(barrier, ctypes.c_int64(0), count)  # ctypes releases the interpreter's lock
        for other in others:
            other.result()
