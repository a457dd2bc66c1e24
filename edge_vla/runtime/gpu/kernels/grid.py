"""A barrier among all programs of a launch, which must all be resident: a cooperative launch sees to that.

Its state is one counter that only grows, at each barrier by the number of programs: so what a program waits for is its
own arrival's count rounded up, whatever came before, and a graph can repeat the launch. A program that has waited too
long says so, and opens all that is left of the barriers: the launch ends, with wrong results that the host can tell.
"""

from __future__ import annotations

from typing import Final

from edge_vla.runtime.gpu.kernels.language import jit, tl

POLLS: Final = 1 << 21  # a second or more on any chip; a phase takes some microseconds
BARRIERS: Final = 1 << 12  # of a launch, at most


@jit
def grid_barrier(counter: tl.tensor, PROGRAMS: tl.constexpr, POLLS: tl.constexpr, BARRIERS: tl.constexpr) -> None:
    """Until every program has come here, and sees what the others wrote. `counter` (2,) int64: the second, 1 if not.

    A program's first thread counts and waits for all of its threads; to them, nothing is missing.
    """
    tl.debug_barrier()  # every thread's writes before the arrival, whose release covers them all
    before = _arrive(counter)
    target = (before // PROGRAMS + 1) * PROGRAMS
    missing, polls = tl.where(before < 0, 0, target - 1 - before), 0
    while (missing > 0) & (polls < POLLS):
        missing = target - _count(counter)
        polls += 1
    if missing > 0:
        tl.store(counter + 1, 1)
        tl.atomic_add(counter, PROGRAMS * BARRIERS, sem="release", scope="gpu")
    tl.debug_barrier()  # what the first thread has acquired, for all


@jit
def _arrive(counter: tl.tensor) -> tl.tensor:
    """What was counted before this program; -1 to all threads but the first."""
    return tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        mov.b64 $0, -1;
        @first atom.acq_rel.gpu.global.add.u64 $0, [$1], 1;
        }""",
        "=&l,l", [counter.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def _count(counter: tl.tensor) -> tl.tensor:
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l", [counter.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
    )
