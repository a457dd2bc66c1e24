"""Several threads inside one C function: each calls it with its own number, and they wait for each other in there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch

WORTH_A_THREAD: Final = 1 << 26  # multiplications; below, handing out the work costs more than it saves
MOST: Final = 256  # threads, made when first needed

Part = Callable[[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None]


class Team:
    """`run` calls `part(team, member, members)` on as many of torch's number of threads as the work is worth.

    One run at a time. Its threads are its own: members of two teams in one pool could wait for each other for ever.
    """

    def __init__(self) -> None:
        self._meeting = torch.zeros(2, dtype=torch.int32)  # `Team` of team.h
        self._others = ThreadPoolExecutor(MOST, "edge-vla")

    def run(self, part: Part, work: int) -> None:
        members = max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD, MOST))
        place, count = ctypes.c_void_p(self._meeting.data_ptr()), ctypes.c_int64(members)
        others = [self._others.submit(part, place, ctypes.c_int64(member), count) for member in range(1, members)]
        part(place, ctypes.c_int64(0), count)  # ctypes lets go of the interpreter's lock
        for other in others:
            other.result()
