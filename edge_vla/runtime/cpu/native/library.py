"""The C files beside this one as a loaded library, or nothing where this machine cannot make it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

from edge_vla.runtime.compiled import compiled

HERE: Final = Path(__file__).parent
SOURCES: Final = ("decoder.c", "vision.c")
FLAGS: Final = ("-std=gnu11", "-fopenmp-simd")


@cache
def library(*extra: str) -> ctypes.CDLL | None:
    """The library, or None without a compiler. `extra`: further flags."""
    read = sorted(HERE.glob("*.[ch]"))
    loaded = compiled("network", [HERE / source for source in SOURCES], read, (*FLAGS, *extra))
    if loaded is not None:
        loaded.edge_vla_instructions.restype = ctypes.c_int
        for name in ("decode", "follow", "see", "multiply", "lead"):
            getattr(loaded, f"edge_vla_{name}").restype = None
    return loaded


def fast() -> bool:
    """Whether this machine has the compiler and the instructions with which the C form is the fastest."""
    found = library()
    return found is not None and found.edge_vla_instructions() == 1
