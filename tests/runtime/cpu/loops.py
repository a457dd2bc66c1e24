"""Instructions in the engine's inner loops, read from the machine code: nothing runs, so a busy machine counts alike.

    python -m tests.runtime.cpu.loops        writes loops.json anew

valgrind knows no AVX-512, AVX-VNNI or Arm on x86; a disassembler knows all of them. Of each kind of loop the one with
the most product instructions counts: the full tile. An innermost loop is a jump back with no other jump back inside;
its body runs from the jump's destination to the jump, and has no branches but early ends. What stands outside of it
(scales, corrections, prologues) is not counted.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edge_vla.runtime.cpu.native.targets import FLAGS, HERE, SCALAR, TARGETS, WRITTEN, Target
from tests.runtime.cpu.compilers import gcc, objdump

RECORD: Final = Path(__file__).with_name("loops.json")
LINE: Final = re.compile(r"^\s*([0-9a-f]+):\s+(?:\{vex\} )?(\S+)(?:\s+(.*))?$")
# A product instruction, and how many products of a weight and an input one has, by the bits of its registers.
PRODUCTS: Final = (
    ("bytes", re.compile(r"(vpmaddubsw|vpdpbusd|sdot|smull2?)$"), 8),
    ("bf16", re.compile(r"vdpbf16ps$"), 16),
    ("int16", re.compile(r"vpmaddwd$"), 16),
    ("floats", re.compile(r"(vfmadd\d+ps|fmla)$"), 32),
)
OTHER: Final = re.compile(r"(vcmp|vdiv|vmin|vmax|fdiv|fcm|fmin|fmax|fsqrt)")  # exponentials and norms have them
SHIFTS: Final = re.compile(r"(vpsrlw|ushr|vpslld|shl|vpshufb)$")  # weights are unpacked in the loop


@dataclass(frozen=True)
class Loop:
    """One inner loop: its instructions, those that multiply, and the weights times rows that these multiply."""

    instructions: int
    product_instructions: int
    products: int

    @property
    def per_product(self) -> float:
        return self.instructions / self.products


def disassembled(target: Target, directory: Path) -> list[tuple[int, str, str]]:
    """decoder.c for a target: address, instruction and operands."""
    compiler, disassembler = gcc(target.machine), objdump(target.machine)
    assert compiler, f"{target.name} is not `countable`"
    assert disassembler, f"{target.name} is not `countable`"
    made = directory / f"{target.name}.o"
    flags = [flag for flag in FLAGS if flag != "-shared"]
    words = [*flags, *target.flags, f"-D{target.define}", "-c", "-o", str(made), str(HERE / "decoder.c")]
    subprocess.run([compiler, *words], check=True, capture_output=True)
    shown = subprocess.run(
        [disassembler, "-d", "--no-show-raw-insn", str(made)], check=True, capture_output=True, text=True
    ).stdout
    matches = (LINE.match(line) for line in shown.splitlines())
    return [(int(found[1], 16), found[2], found[3] or "") for found in matches if found]


def innermost(code: list[tuple[int, str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Bodies of loops that have no loop inside."""
    places = {address: index for index, (address, _, _) in enumerate(code)}
    jumps = list[tuple[int, int]]()
    for index, (address, name, operands) in enumerate(code):
        destination = re.search(r"\b([0-9a-f]+) <", operands)
        if re.match(r"(j|b\.|b$|cbn?z|tbn?z)", name) and destination and int(destination[1], 16) < address:
            begin = places.get(int(destination[1], 16))
            if begin is not None:
                jumps.append((begin, index))
    for begin, end in jumps:
        if not any(begin <= other_begin and other_end < end for other_begin, other_end in jumps):
            yield [(name, operands) for _, name, operands in code[begin : end + 1]]


def loops(code: list[tuple[int, str, str]]) -> dict[str, Loop]:
    """The largest loop of each kind: `bytes`, or `bytes, unpacked` where it shifts what it loads."""
    found = dict[str, Loop]()
    for body in innermost(code):
        if any(OTHER.match(name) for name, _ in body):
            continue
        for kind, pattern, bits in PRODUCTS:
            operands = [operands for name, operands in body if pattern.match(name)]
            if not operands:
                continue
            unpacked = any(SHIFTS.match(name) for name, _ in body)
            products = sum(width(one) // (bits * (2 if ".8h" in one else 1)) for one in operands)
            loop = Loop(len(body), len(operands), products)
            name = f"{kind}, unpacked" if unpacked else kind
            if name not in found or loop.product_instructions > found[name].product_instructions:
                found[name] = loop
            break
    return found


def width(operands: str) -> int:
    """Bits of the widest register."""
    return 512 if "%zmm" in operands else 256 if "%ymm" in operands else 128


def countable() -> list[Target]:
    """The targets whose compiler and disassembler are here."""
    made = [target for target in TARGETS if target.name in WRITTEN and target != SCALAR]
    return [target for target in made if objdump(target.machine)]


def compiler_version(target: Target) -> str:
    """What loops look like hangs on it: gcc 12."""
    said = subprocess.run([str(gcc(target.machine)), "-dumpversion"], capture_output=True, text=True, check=True)
    return f"gcc {said.stdout.strip().partition('.')[0]}"


def main() -> None:
    import tempfile

    record: dict[str, object] = {"compiler": compiler_version(countable()[0])}
    with tempfile.TemporaryDirectory() as directory:
        for target in countable():
            counted = loops(disassembled(target, Path(directory)))
            record[target.name] = {
                kind: {**asdict(loop), "per_product": round(loop.per_product, 4)} for kind, loop in counted.items()
            }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
