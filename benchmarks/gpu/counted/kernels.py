"""Every kernel of a policy compiled for one chip, a row each.

A program, because Triton decides at import whether to interpret, and keeps what it compiled by process:
`python -m benchmarks.gpu.counted.kernels H200` prints a JSON line per kernel.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from benchmarks.gpu.counted.chips import CHIPS, WARP, resident
from benchmarks.gpu.counted.driver import Compiled, compiling_for
from benchmarks.gpu.counted.machine_code import Instruction
from benchmarks.gpu.counted.result import KernelRow
from benchmarks.gpu.kernel_checks.cases import of_policy
from benchmarks.gpu.kernel_checks.check import RandomInputs
from benchmarks.gpu.tune_shapes import shapes, work
from edge_vla.runtime.gpu.kernels.tiles import ROW_TILES
from edge_vla.spec import OPENVLA_7B, PolicySpec

PREFILL: Final = 288
SMALL_GROUPS: Final = (32, 64)  # of int4 weights: they take branches of the kernels that a group of 128 does not
INT4: Final = ("w4a16_gemv", "w4a16_gemm", "w4a8_gemm")
PASS: Final = "decode_pass"
SHAPES: Final = ("QKV", "O_PROJ", "GATE_UP", "DOWN")  # of its products: `decode_phases` says what they hold
INT4_PASS: Final = f"{PASS} w4a16"
TOWERS: Final = ("w8a16_tower", "w8a8_tower")


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel at one shape, to be launched once; `moved_bytes` must be read or written, `operations` be computed.

    `rows`: what a GEMM is given.
    """

    case: str
    launch: Callable[[], object]
    moved_bytes: int
    operations: int
    rows: int


def launches(spec: PolicySpec, inputs: RandomInputs) -> Iterator[Launch]:
    """Made one at a time: the weights of all of them would not fit in memory together."""
    groups = [(case, case.name) for case in of_policy(spec, PREFILL)]
    for group in SMALL_GROUPS:
        small = [case for case in of_policy(spec, PREFILL, group) if case.kernel in INT4 or INT4_PASS in case.name]
        groups += [(case, f"{case.name}, groups of {group}") for case in small]
    for case, name in groups:
        check = case.make(inputs)
        yield Launch(name, check.launch or check.kernel, check.moved_bytes, check.operations, PREFILL)
    for shape in shapes(spec, PREFILL, TOWERS):
        made = work(shape, inputs, 0)
        name = f"{shape.kind} {shape.name} {shape.n}x{shape.k}, {shape.m} rows"
        yield Launch(name, partial(made.launch, None), made.moved_bytes, made.operations, shape.m)


def rows(spec: PolicySpec, chip: str) -> Iterator[KernelRow]:
    """One row a launch, also where an earlier one has the same binary: shapes of it differ."""
    inputs = RandomInputs.seeded(0, torch.device("cpu"), torch.bfloat16)
    with compiling_for(CHIPS[chip]) as compiled:
        for one in launches(spec, inputs):
            known = len(compiled)
            one.launch()
            yield from (_row(chip, one, kernel) for kernel in compiled[known:])


def _row(chip: str, launch: Launch, kernel: Compiled) -> KernelRow:
    code, loop = kernel.code, _loop(kernel)
    assert kernel.constants is not None, f"{kernel.kernel} was compiled and not launched"
    product, gemm = (kernel.kernel.endswith(names) for names in (("gemv", "gemm", PASS), ("gemm",)))
    weights, programs = _weights(kernel.constants) if product else None, math.prod(kernel.grid)
    return KernelRow(
        chip=chip,
        case=launch.case,
        kernel=kernel.kernel.lstrip("_"),
        programs=programs,
        passes=kernel.grid[0] if gemm else 1,
        warps=kernel.warps,
        programs_per_sm=resident(CHIPS[chip], kernel.warps, code.registers, kernel.shared_bytes),
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        shared_bytes=kernel.shared_bytes,
        instructions=len(code.instructions),
        loop=len(loop),
        loop_products=sum(one.multiplies for one in loop),
        loop_loads=sum(one.loads for one in loop),
        loop_wide_loads=sum(one.loads_wide for one in loop),
        per_weight=None if weights is None else round(len(loop) * kernel.warps * WARP / weights, 2),
        moved_bytes=launch.moved_bytes,
        operations=launch.operations,
        per_sm=round(programs / CHIPS[chip].sm_count, 2) if product else None,
        rows=launch.rows if gemm else None,
        rows_computed=_rows(kernel) if gemm else None,
    )


def _loop(kernel: Compiled) -> tuple[Instruction, ...]:
    """Of a whole pass, the loops of its four products, one after the other; else the one that multiplies."""
    if not kernel.kernel.endswith(PASS):
        return kernel.code.loop()
    _, *products = kernel.code.inner_loops()  # functions lie by name: first comes attention's
    assert len(products) == len(SHAPES), f"{len(products)} products in {kernel.kernel}"
    return tuple(one for loop in products for one in loop)


def _rows(gemm: Compiled) -> int:
    """Of its row tiles; those of the last program along M may be others."""
    constants, programs = gemm.constants or {}, gemm.grid[0]
    each, last = (sum(int(constants[f"{name}{i}"]) for i in range(ROW_TILES)) for name in "ML")
    return (programs - 1) * each + (last or each)


def _weights(constants: dict[str, Any]) -> int:
    """What one turn of a product's loop multiplies by, or of all four together."""
    if SHAPES[0] in constants:
        return sum(block_n * block_k for *_, block_n, block_k, _ in map(constants.__getitem__, SHAPES))
    return int(constants["BLOCK_N"]) * int(constants["BLOCK_K"])


if __name__ == "__main__":
    for one in rows(OPENVLA_7B, sys.argv[1]):
        sys.stdout.write(json.dumps(dataclasses.asdict(one)) + "\n")
        sys.stdout.flush()
