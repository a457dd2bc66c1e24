"""The C engine without Python: random shapes on every target, emulated Arm too, and under sanitizers (slow).

`c/random_shapes.c` prints a hash of what each case gives. Targets without an instruction for bfloat16 print what plain
C prints, on either architecture; under sanitizers nothing is read or written beside a buffer, and nothing overflows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_vla.processor import ARM, X86, machine
from edge_vla.runtime.cpu.native.targets import FLAGS, HERE, SCALAR, TARGETS, WRITTEN, Target, runnable
from tests.runtime.cpu.compilers import gcc, gcc_for

DRIVER = Path(__file__).parent / "c" / "random_shapes.c"
SOURCES = [str(path) for path in (DRIVER, HERE / "decoder.c", HERE / "vision.c", HERE / "int4.c")]
CASES = 60
EMULATED = {"neon": "cortex-a53", "neon-dotprod": "cortex-a76"}  # the least processors that have their instructions
IN_VALGRIND = ("avx2", "scalar")
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ARMS = [target for target in TARGETS if target.machine == ARM and target.name in WRITTEN]
NEEDS_GCC = pytest.mark.skipif(machine() != X86 or gcc(X86) is None, reason="no x86 gcc here")
NEEDS_EMULATOR = pytest.mark.skipif(
    gcc(ARM) is None or shutil.which("qemu-aarch64-static") is None,
    reason="needs apt-get install gcc-aarch64-linux-gnu qemu-user-static",
)


def built(directory: Path, target: Target, *further: str) -> Path:
    """The driver for a target, with the library's flags but those of a library."""
    file = directory / target.name
    flags = [flag for flag in FLAGS if flag not in ("-fPIC", "-shared")]
    words = [*flags, *target.flags, f"-D{target.define}", *further, f"-I{HERE}", "-o", str(file), *SOURCES, "-lm"]
    subprocess.run([str(gcc_for(target)), *words], check=True, capture_output=True, text=True)
    return file


def printed(*command: str, seed: int = 1, cases: int = CASES) -> str:
    """What the cases print; a sanitizer's message is the failure's."""
    done = subprocess.run([*command, str(seed), str(cases)], capture_output=True, text=True, env={"PATH": os.defpath})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    text = printed(str(built(tmp_path_factory.mktemp("plain"), SCALAR)))
    assert len(set(text.splitlines())) >= CASES, "cases that print the same compare nothing"
    return text


@NEEDS_GCC
@NEEDS_EMULATOR
@pytest.mark.parametrize("target", ARMS, ids=lambda target: target.name)
def test_arm_has_the_bits_of_plain_c(target: Target, plain: str, tmp_path: Path) -> None:
    """One instruction more than the target's stops the emulator."""
    program = built(tmp_path, target, "-static")
    assert printed("qemu-aarch64-static", "-cpu", EMULATED[target.name], str(program)) == plain


@pytest.mark.slow
@NEEDS_GCC
@pytest.mark.parametrize("target", runnable(), ids=lambda target: target.name)
def test_sanitizers_find_nothing(target: Target, tmp_path: Path) -> None:
    """Address and undefined behaviour, 400 shapes: groups, odd heads, widths that fill no vector, one row and many."""
    text = printed(str(built(tmp_path, target, *SANITIZERS)), cases=400)
    assert len(text.splitlines()) >= 400


@pytest.mark.slow
@NEEDS_GCC
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs apt-get install valgrind")
@pytest.mark.parametrize(
    "target", [one for one in runnable() if one.name in IN_VALGRIND], ids=lambda target: target.name
)
def test_valgrind_finds_nothing(target: Target, plain: str, tmp_path: Path) -> None:
    """What sanitizers do not see: no number is made of memory that was never written. It knows no more than AVX2."""
    program = built(tmp_path, target, "-g")
    assert printed(shutil.which("valgrind") or "", "-q", "--error-exitcode=9", str(program)) == plain
