"""The C files beside this one as a loaded library. Compiled once by the machine's own compiler, then kept.

Without a compiler nothing is lost but speed: torch's operators run instead. `EDGE_VLA_NATIVE=0` says so on purpose.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from edge_vla.runtime.kernels.store import processor, user_cache

HERE: Final = Path(__file__).parent
SOURCES: Final = ("decoder.c", "vision.c")
X86: Final = platform.machine() in ("x86_64", "AMD64")
FLAGS: Final = (
    "-std=gnu11", "-O3", "-march=native", *(["-mprefer-vector-width=512"] if X86 else []), "-fopenmp-simd", "-fPIC",
    "-shared",
)  # fmt: skip


@cache
def library(*extra: str) -> ctypes.CDLL | None:
    """The library, or None where there is no compiler, or what it made does not load. `extra`: further flags."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("EDGE_VLA_NATIVE") == "0" or compiler is None:
        return None
    flags = (*FLAGS, *extra)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    about = [path.read_bytes() for path in sorted(HERE.glob("*.[ch]"))]
    made_from = b"\0".join([*about, version, " ".join([platform.machine(), processor(), *flags]).encode()])
    name = f"network-{hashlib.sha256(made_from).hexdigest()[:16]}.so"
    try:
        directory = user_cache()
        target = directory / name
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=directory) as beside:
                made = Path(beside) / name
                command = [compiler, *flags, "-o", str(made), *(str(HERE / source) for source in SOURCES), "-lm"]
                subprocess.run(command, capture_output=True, check=True)
                made.replace(target)
        loaded = ctypes.CDLL(str(target))
        loaded.edge_vla_instructions.restype = ctypes.c_int
        for function in (loaded.edge_vla_decode, loaded.edge_vla_see, loaded.edge_vla_multiply):
            function.restype = None
    except (OSError, AttributeError, subprocess.CalledProcessError):
        return None
    return loaded


def fast() -> bool:
    """Whether this machine has the compiler and the instructions with which the C form is the fastest."""
    compiled = library()
    return compiled is not None and compiled.edge_vla_instructions() == 1
