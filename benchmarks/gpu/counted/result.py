"""The counted table: a row for each kernel of each chip, launches of one action, and what has become worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Final

NOISE: Final = 1.02  # a compiler's next version moves an instruction or two


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel at one shape, as compiled for one chip.

    `loop` is the innermost loop that multiplies: all its instructions, its loads from global memory, and those that
    load 16 bytes a thread. `per_weight`: lane-instructions of it for one weight; None for a kernel without weights, as
    is `per_sm`. `rows` are those that a GEMM was given, `rows_computed` those of its tiles; None for other kernels.
    A `decode_pass` has the loops of its four products together, a turn of each.
    """

    chip: str
    case: str
    kernel: str
    programs: int
    passes: int  # programs that read each weight
    warps: int
    programs_per_sm: int  # that its registers and shared memory leave room for
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    loop: int
    loop_products: int  # tensor-core instructions
    loop_loads: int
    loop_wide_loads: int
    per_weight: float | None
    moved_bytes: int  # that must be read or written at least once
    operations: int
    per_sm: float | None = None  # programs of the launch for each of the chip's multiprocessors
    rows: int | None = None
    rows_computed: int | None = None

    @property
    def name(self) -> tuple[str, str, str]:
        return self.chip, self.case, self.kernel


@dataclass(frozen=True, slots=True)
class LaunchRow:
    """Launches of one stage at the structure of OpenVLA-7B: our kernels by name, and torch's operators.

    A configuration is as it is loaded by default, unless its name says that steps are a chain of kernels.
    """

    configuration: str
    stage: str
    times: int  # in one action
    kernels: dict[str, int]
    torch: int

    @property
    def total(self) -> int:
        return self.times * (sum(self.kernels.values()) + self.torch)


@dataclass(frozen=True)
class CountedResult:
    """`kernels` as this compiler made them, for every chip; `launches` are the same on all."""

    KIND: ClassVar[str] = "gpu-counted"
    VERSION: ClassVar[int] = 1
    compiler: str
    launches: list[LaunchRow]
    kernels: list[KernelRow]


IN_A_PASS: Final = "8 to 32 bytes of stack at 128 registers: a phase, where a norm returns to, in no inner loop"
# Rows that break a rule, by how their name begins, and why they may.
ACCEPTED: Final[Mapping[str, str]] = {
    "3090 decode_pass w4a16, 1 rows": IN_A_PASS,
    "3090 decode_pass w16": IN_A_PASS,
    "4090 decode_pass w4a16, 1 rows": IN_A_PASS,
    "4090 decode_pass w16, 1 rows": IN_A_PASS,
    "B200 decode_pass w16, 1 rows": IN_A_PASS,
    "H200 decode_pass w16, 1 rows": IN_A_PASS,
    "H200 w4a16_gemm": "8 bytes of stack at 255 registers, as it was when it was measured fastest on an H200",
}
ONE_WAVE: Final = "128 programs of one an SM, all at once; more of smaller tiles were slower by {}, measured on an H200"
ACCEPTED_GRIDS: Final[Mapping[str, str]] = {  # fewer programs than the H200, and the H100, have multiprocessors
    "H200 w4a16_gemm o_proj": ONE_WAVE.format("8 %"),
    "H200 w4a16_gemm down_proj": ONE_WAVE.format("17 %"),
}
FILLED: Final = "H200"  # whose products have at least a program for each SM; an H100 has as many SMs
MOST_PADDING: Final = 1.06  # rows computed for each that is needed, on any chip
MORE_IS_WORSE: Final = ("registers", "stack_bytes", "shared_bytes", "loop", "per_weight", "rows_computed")
LESS_IS_WORSE: Final = ("programs_per_sm", "loop_products", "loop_wide_loads")


def worsened(before: Sequence[KernelRow], now: Sequence[KernelRow]) -> Iterator[str]:
    """A line for each row that costs more than it did, or is missing, or is new."""
    known = {row.name: row for row in before}
    for row in now:
        old = known.pop(row.name, None)
        if old is None:
            yield f"{' '.join(row.name)}: not in the table"
            continue
        for field in fields(row):
            was, value = getattr(old, field.name), getattr(row, field.name)
            if field.name in MORE_IS_WORSE and (value or 0) > (was or 0) * NOISE:
                yield f"{' '.join(row.name)}: {field.name} {was} -> {value}"
            if field.name in LESS_IS_WORSE and value * NOISE < was:
                yield f"{' '.join(row.name)}: {field.name} {was} -> {value}"
    yield from (f"{' '.join(name)}: in the table, no longer compiled" for name in known)


def broken(row: KernelRow, shared_limit: int) -> Iterator[str]:
    """What no kernel may do, table or not, unless `ACCEPTED` says why."""
    name = " ".join(row.name)
    if row.stack_bytes and not any(name.startswith(prefix) for prefix in ACCEPTED):
        yield f"{name}: {row.stack_bytes} bytes of registers on the stack"
    if row.shared_bytes > shared_limit:
        yield f"{name}: {row.shared_bytes} bytes of shared memory, the chip has {shared_limit}"
    if row.programs_per_sm < 1:
        yield f"{name}: does not fit a multiprocessor"
    if row.rows and row.rows_computed and row.rows_computed > MOST_PADDING * row.rows:
        yield f"{name}: computes {row.rows_computed} rows for {row.rows}"
    starved = row.chip == FILLED and row.per_sm is not None and row.per_sm < 1
    if starved and not any(name.startswith(prefix) for prefix in ACCEPTED_GRIDS):
        yield f"{name}: {row.per_sm} programs for each multiprocessor"
    product = any(word in row.kernel for word in ("gemv", "gemm", "attention", "logits", "decode_pass"))
    if product != (row.loop_products > 0):
        yield f"{name}: {'no' if product else 'unexpected'} tensor-core instructions in its loop"
