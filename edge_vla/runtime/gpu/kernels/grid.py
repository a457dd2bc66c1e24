"""A barrier among all programs of a launch, which must all be resident: a cooperative launch sees to that.

Its state is one counter that only grows, at each barrier by one more than there are programs: so what a program waits
for is its own arrival's count rounded up, whatever came before, and a graph can repeat the launch. The one more opens
it. Where all only wait, the first program adds that as well when it arrives. Where there is something to do for all,
the last to arrive learns that it is, does it, and opens: one barrier, and no second for what one program did.
A program that has waited too long says so, and opens all that is left of the barriers, in later launches too until the
host has asked: the launch ends, with wrong results that the host can tell.
"""

from __future__ import annotations

from typing import Final

from edge_vla.runtime.gpu.kernels.language import jit, tl

POLLS: Final = 1 << 21  # a second or more on any chip; a phase takes some microseconds
OPEN: Final = 1 << 52  # no count comes so far in years of actions; that many programs times this is no overflow


@jit
def come(counter: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The first half of a barrier where all only wait: what `wait_for_all` asks for. `counter` (2,) int64.

    A program's first thread counts and waits for all of its threads; to them, nothing is missing.
    """
    tl.debug_barrier()  # every thread's writes before the arrival, whose release covers them all
    own = tl.where(tl.program_id(0) == 0, 2, 1).to(tl.int64)
    return _arrive(counter, own), own


@jit
def wait_for_all(
    counter: tl.tensor,
    before: tl.tensor,
    own: tl.tensor,
    PROGRAMS: tl.constexpr,
    POLLS: tl.constexpr,
    OPEN: tl.constexpr,
) -> None:
    """Until every program has come, and this one sees what the others wrote; the second of `counter` is 1 if not."""
    _wait(counter, before, own, PROGRAMS, POLLS, OPEN)


@jit
def arrive(counter: tl.tensor) -> tl.tensor:
    """What was counted before this program, which the last of all sees (`is_last`) with all that the others wrote."""
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before


@jit
def is_last(before: tl.tensor, PROGRAMS: tl.constexpr) -> tl.tensor:
    """Whether this program must do what is to be done for all, then `open_barrier`."""
    return before % (PROGRAMS + 1) == PROGRAMS - 1


@jit
def open_barrier(counter: tl.tensor) -> None:
    tl.debug_barrier()  # every thread's writes before
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@jit
def wait_for_opening(
    counter: tl.tensor, before: tl.tensor, PROGRAMS: tl.constexpr, POLLS: tl.constexpr, OPEN: tl.constexpr
) -> None:
    """After `arrive`, for all but the last."""
    _wait(counter, tl.where(_is_first_thread(), before, -1), 1, PROGRAMS, POLLS, OPEN)


@jit
def _wait(
    counter: tl.tensor,
    before: tl.tensor,
    own: tl.tensor,
    PROGRAMS: tl.constexpr,
    POLLS: tl.constexpr,
    OPEN: tl.constexpr,
) -> None:
    """Until the barrier is open whose count was `before`, to which this program added `own`; -1 does not wait."""
    target = (before // (PROGRAMS + 1) + 1) * (PROGRAMS + 1)
    missing, polls = tl.where((before < 0) | (before >= OPEN), 0, target - own - before), 0
    while (missing > 0) & (polls < POLLS):
        missing = target - _count(counter)
        polls += 1
    if missing > 0:
        tl.store(counter + 1, 1)
        tl.atomic_add(counter, OPEN, sem="release", scope="gpu")
    tl.debug_barrier()  # what the first thread has acquired, for all


@jit
def _arrive(counter: tl.tensor, own: tl.tensor) -> tl.tensor:
    """Counts `own`: what was counted before, and -1 to all threads but the first."""
    return tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        mov.b64 $0, -1;
        @first atom.acq_rel.gpu.global.add.u64 $0, [$1], $2;
        }""",
        "=&l,l,l", [counter.to(tl.int64), own], dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def _is_first_thread() -> tl.tensor:
    thread = tl.inline_asm_elementwise(
        "mov.u32 $0, %tid.x; // $1", "=r,r", [tl.program_id(0)], dtype=tl.int32, is_pure=True, pack=1
    )
    return thread == 0


@jit
def _count(counter: tl.tensor) -> tl.tensor:
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l", [counter.to(tl.int64)], dtype=tl.int64, is_pure=False, pack=1
    )
