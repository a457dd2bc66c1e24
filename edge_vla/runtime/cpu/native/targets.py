"""What the C files can be compiled for, what this processor can run, and the choice between them.

Knows names of instructions and the compiler's command. Imports neither torch nor anything that does: the wheel's
build reads this file where nothing else is installed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from edge_vla.errors import BackendError, UsageError
from edge_vla.processor import ARM, X86, features, machine

VARIABLE: Final = "EDGE_VLA_TARGET"  # an environment variable: the target of `auto` and `native`
ANY: Final = ""  # machine


@dataclass(frozen=True)
class Target:
    """A set of instructions. `features` as Linux names them; C is compiled with `flags` and `define`."""

    name: str
    machine: str
    features: frozenset[str]
    flags: tuple[str, ...]

    @property
    def define(self) -> str:
        """Tells `lanes.h` which implementation to take: `LANES_AVX512_BF16`."""
        return "LANES_" + self.name.replace("-", "_").upper()


def _x86(name: str, features: str, *flags: str) -> Target:
    return Target(name, X86, frozenset(features.split()), flags)


def _arm(name: str, features: str, march: str) -> Target:
    return Target(name, ARM, frozenset(features.split()), (f"-march={march}",))


AVX2: Final = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mmovbe")
AVX512: Final = (*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "cd")), "-mprefer-vector-width=512")
VNNI: Final = (*AVX512, "-mavx512vnni")
HAS_AVX2: Final = "avx2 fma f16c bmi1 bmi2 abm popcnt movbe"
HAS_AVX512: Final = f"{HAS_AVX2} avx512f avx512bw avx512vl avx512dq avx512cd"

SCALAR: Final = Target("scalar", ANY, frozenset(), ())
# The best of each machine first. `avx512-bf16` rounds in its own way, and its instruction is slower than two of float32
# on Intel's cores: only its name chooses it.
TARGETS: Final = (
    _x86("amx", f"{HAS_AVX512} avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16",
         *VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    _x86("avx512-vnni", f"{HAS_AVX512} avx512_vnni", *VNNI),
    _x86("avx512-bf16", f"{HAS_AVX512} avx512_vnni avx512_bf16", *VNNI, "-mavx512bf16"),
    _x86("avx512", HAS_AVX512, *AVX512),
    _x86("avx2-vnni", f"{HAS_AVX2} avx_vnni", *AVX2, "-mavxvnni"),
    _x86("avx2", HAS_AVX2, *AVX2),
    _arm("neon-bf16", "asimd asimddp i8mm bf16", "armv8.2-a+dotprod+i8mm+bf16"),
    _arm("neon-i8mm", "asimd asimddp i8mm", "armv8.2-a+dotprod+i8mm"),
    _arm("neon-dotprod", "asimd asimddp", "armv8.2-a+dotprod"),
    _arm("neon", "asimd", "armv8-a"),
    SCALAR,
)  # fmt: skip
# Those that the C files have an implementation of.
WRITTEN: Final = frozenset(
    {"avx512-vnni", "avx512-bf16", "avx512", "avx2-vnni", "avx2"} | {"neon-dotprod", "neon"} | {"scalar"}
)


def written(of: str | None = None) -> tuple[Target, ...]:
    """The targets that C has for a machine (default: this one), the best first."""
    where = of or machine()
    return tuple(target for target in TARGETS if target.name in WRITTEN and target.machine in (ANY, where))


def runnable(of: str | None = None, having: frozenset[str] | None = None) -> tuple[Target, ...]:
    """The targets that a processor (default: this one) can run, the best first; `scalar` is always the last."""
    there = features() if having is None else having
    return tuple(target for target in written(of) if target.features <= there)


def named(name: str) -> Target:
    """The target asked for. UsageError for a name that is none, BackendError where this processor cannot run it."""
    found = next((target for target in TARGETS if target.name == name), None)
    if found is None:
        raise UsageError(f"no target {name!r}: this machine has {listed()}")
    if found.machine not in (ANY, machine()):
        raise BackendError(f"target {name} is for {found.machine}, this machine is {machine()}: it has {listed()}")
    missing = sorted(found.features - features())
    if missing:
        raise BackendError(f"target {name} needs {', '.join(missing)}, which this processor lacks: it has {listed()}")
    if name not in WRITTEN:
        raise BackendError(f"target {name} is not written yet: this machine has {listed()}")
    return found


def listed() -> str:
    """Of this machine, as one says it after `native@`."""
    return ", ".join(target.name for target in runnable())


def split(kernel: str) -> tuple[str, str | None]:
    """`native/int8@avx2` -> `native/int8` and `avx2`; None where no target is asked for."""
    name, at, target = kernel.partition("@")
    return name, target if at else None


def forced() -> Target | None:
    """What the environment asks for in place of the best; errors as of `named`."""
    name = os.environ.get(VARIABLE)
    return named(name) if name else None


HERE: Final = Path(__file__).parent
INSTALLED: Final = HERE / "compiled"  # the wheel's build fills it
SOURCES: Final = ("decoder.c", "vision.c", "int4.c", "target.c")
# What is rounded once is said in C: a compiler that fuses products and sums where it likes rounds as it likes.
FLAGS: Final = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fopenmp-simd", "-fPIC", "-shared")


@cache
def fingerprint(target: Target) -> str:
    """Of the C files and the target's flags: a library of another one is stale."""
    texts = [path.name.encode() + bytes(1) + path.read_bytes() for path in sorted(HERE.glob("*.[ch]"))]
    flags = " ".join([*FLAGS, *target.flags, target.define]).encode()
    return hashlib.sha256(bytes(1).join([flags, *texts])).hexdigest()[:16]


def file_name(target: Target) -> str:
    """Of the library that is installed with the package."""
    return f"network-{target.name}-{fingerprint(target)}.so"


def words(target: Target, further: Sequence[str] = ()) -> list[str]:
    """What follows the compiler's name, all but the output file."""
    defines = [f"-D{target.define}", f'-DTARGET="{target.name}"', f'-DFINGERPRINT="{fingerprint(target)}"']
    return [*FLAGS, *target.flags, *defines, *further, *(str(HERE / source) for source in SOURCES), "-lm"]
