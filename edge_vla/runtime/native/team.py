"""Several threads inside one C function: each calls it with its own number, and they wait for each other in there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

import torch

WORTH_A_THREAD: Final = 1 << 26  # multiplications; below, handing out the work costs more than it saves


class Team:
    """`run` calls `part(team, member, members)` on as many of torch's number of threads as the work is worth."""

    def __init__(self) -> None:
        self.meeting = torch.zeros(2, dtype=torch.int32)  # `Team` of team.h

    def run(self, part: Callable[[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None], work: int) -> None:
        members = max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD))
        place, count = ctypes.c_void_p(self.meeting.data_ptr()), ctypes.c_int64(members)
        others = [_pool(members).submit(part, place, ctypes.c_int64(member), count) for member in range(1, members)]
        part(place, ctypes.c_int64(0), count)  # ctypes lets go of the interpreter's lock
        for other in others:
            other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "edge-vla")
