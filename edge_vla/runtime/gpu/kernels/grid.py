"""A barrier among all programs of a launch, which must all be resident: a cooperative launch sees to that.

Its state is one counter that only grows, in each launch by a multiple of its programs: so the next launch finds its own
start by rounding down, whatever came before. A program that has waited too long says so, and opens all that is left of
the barriers: the launch ends, with wrong results that the host can tell.
"""

from __future__ import annotations

from typing import Final

from edge_vla.runtime.gpu.kernels.language import jit, tl

POLLS: Final = 1 << 21  # a second or more on any chip; a phase takes some microseconds
BARRIERS: Final = 1 << 12  # of a launch, at most


@jit
def first_target(counter: tl.tensor, PROGRAMS: tl.constexpr) -> tl.tensor:
    """The low half of the count at which this launch's first barrier opens. To be called before any barrier."""
    return ((_count(counter) // PROGRAMS + 1) * PROGRAMS).to(tl.int32)


@jit
def grid_barrier(
    counter: tl.tensor, target: tl.tensor, PROGRAMS: tl.constexpr, POLLS: tl.constexpr, BARRIERS: tl.constexpr
) -> None:
    """Until every program has come here, and sees what the others wrote. `counter` (2,) int64: the second, 1 if not."""
    tl.debug_barrier()  # every thread's writes before the arrival, whose release covers them all
    tl.atomic_add(counter, 1, sem="release", scope="gpu")
    missing, polls = target - _count(counter).to(tl.int32), 0
    while (missing > 0) & (polls < POLLS):
        missing = target - _count(counter).to(tl.int32)
        polls += 1
    if missing > 0:
        tl.store(counter + 1, 1)
        tl.atomic_add(counter, PROGRAMS * BARRIERS, sem="release", scope="gpu")
    tl.debug_barrier()


@jit
def _count(counter: tl.tensor) -> tl.tensor:
    """Read by every thread, so that each sees what came before: it drops what its multiprocessor has cached."""
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l", [counter.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
    )
