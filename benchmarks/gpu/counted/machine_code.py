"""A compiled kernel, read back from its machine code: registers, stack, and the instructions of its inner loop.

`cuobjdump` and `nvdisasm` come with Triton. Knows SASS; knows nothing of kernels.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INSTRUCTION: Final = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)(.*)$")
LABEL: Final = re.compile(r"^(\.L_x_\d+):")
TARGET: Final = re.compile(r"`\((\.L_x_\d+)\)")
STACK: Final = ("LDL", "STL")  # registers that did not fit, read back and written


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str  # with its modifiers, such as LDGSTS.E.BYPASS.128
    jumps_to: int | None  # the index of another instruction

    @property
    def operation(self) -> str:
        return self.name.split(".")[0]

    @property
    def multiplies(self) -> bool:
        return "MMA" in self.operation

    @property
    def loads_wide(self) -> bool:
        """16 bytes a thread, or a block of any size by the copy engine."""
        return self.operation == "UTMALDG" or (self.loads and ".128" in self.name)

    @property
    def loads(self) -> bool:
        return self.operation in ("LDG", "LDGSTS", "UTMALDG")


@dataclass(frozen=True, slots=True)
class MachineCode:
    registers: int  # of a thread
    stack_bytes: int  # of a thread
    instructions: tuple[Instruction, ...]

    def inner_loops(self) -> list[tuple[Instruction, ...]]:
        """In the order of the code, all loops that hold no other and multiply."""
        spans = [
            (one.jumps_to, at)
            for at, one in enumerate(self.instructions)
            if one.jumps_to is not None and one.jumps_to < at
        ]
        innermost = [
            (begin, end)
            for begin, end in spans
            if not any(begin <= low and high <= end and (low, high) != (begin, end) for low, high in spans)
        ]
        bodies = [self.instructions[begin : end + 1] for begin, end in innermost]
        return [body for body in bodies if any(one.multiplies for one in body)]

    def loop(self) -> tuple[Instruction, ...]:
        """The innermost loop that multiplies most, the longest of several; if none multiplies, the longest loop."""
        spans = [
            (one.jumps_to, at)
            for at, one in enumerate(self.instructions)
            if one.jumps_to is not None and one.jumps_to < at
        ]
        products = {span: sum(one.multiplies for one in self._body(*span)) for span in spans}
        innermost = [
            one
            for one in spans
            if products[one] and not any(products[other] and one != other and _within(other, one) for other in spans)
        ]
        return max((self._body(*span) for span in innermost or spans), key=_size, default=())

    def _body(self, first: int, last: int) -> tuple[Instruction, ...]:
        return self.instructions[first : last + 1]


def _size(body: Sequence[Instruction]) -> tuple[int, int]:
    return sum(one.multiplies for one in body), len(body)


def _within(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= one[0] and one[1] <= other[1]


def read(tools: Path, binary: bytes) -> MachineCode:
    """`tools`: the folder of cuobjdump and nvdisasm. `binary`: a cubin of one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        used, code = (
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True)
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", used.stdout + used.stderr)
    assert found, used
    return MachineCode(int(found[1]), int(found[2]), parse(code.stdout.splitlines()))


def parse(lines: Sequence[str]) -> tuple[Instruction, ...]:
    """The disassembly of one kernel. A jump to itself, where a program waits to be ended, is no loop."""
    labels, found = dict[str, int](), list[tuple[str, str | None]]()
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif one := INSTRUCTION.match(line):
            target = TARGET.search(one[3]) if one[2].startswith("BRA") else None
            found.append((one[2], target[1] if target else None))
    return tuple(Instruction(name, None if to is None else labels.get(to)) for name, to in found)
