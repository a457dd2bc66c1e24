"""The C compilers here, by the machine that they make code for. `gcc` does not say it: under emulation it crosses."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

from edge_vla.processor import MACHINES, X86
from edge_vla.runtime.cpu.native.targets import ANY, Target


@cache
def gcc(machine: str) -> str | None:
    """The name of the one for `machine`; None where there is none."""
    for name in (f"{machine}-linux-gnu-gcc", "gcc"):
        if shutil.which(name) is None:
            continue
        said = subprocess.run([name, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
        triple = said.strip().partition("-")[0]
        if MACHINES.get(triple, triple) == machine:
            return name
    return None


def objdump(machine: str) -> str | None:
    """The disassembler that came with `gcc`."""
    name = (gcc(machine) or "").removesuffix("gcc") + "objdump"
    return name if gcc(machine) and shutil.which(name) else None


def gcc_for(target: Target) -> str | None:
    """Plain C is compiled for x86, where everything that it is compared with runs."""
    return gcc(X86 if target.machine == ANY else target.machine)
