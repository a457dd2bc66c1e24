"""The C files beside this one as a loaded library, or None on a machine that cannot compile them."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

from edge_vla.runtime.compiled import compiled
from edge_vla.runtime.cpu.native.structs import STRUCTS

HERE: Final = Path(__file__).parent
SOURCES: Final = ("decoder.c", "vision.c", "int4.c")
FLAGS: Final = ("-std=gnu11", "-fopenmp-simd")
FUNCTIONS: Final = ("decode", "decode_steps", "vision", "gemm", "argmax", "dequantise_int4")


@cache
def library(*extra: str) -> ctypes.CDLL | None:
    """The library, or None without a compiler. `extra`: further flags."""
    read = sorted(HERE.glob("*.[ch]"))
    loaded = compiled("network", [HERE / source for source in SOURCES], read, (*FLAGS, *extra))
    if loaded is None:
        return None
    sizes = list((ctypes.c_int64 * len(STRUCTS)).in_dll(loaded, "edge_vla_struct_sizes"))
    differ = [one.__name__ for one, size in zip(STRUCTS, sizes, strict=True) if ctypes.sizeof(one) != size]
    assert not differ, f"structs.py and structs.h differ in {differ}"
    loaded.edge_vla_has_bf16_simd.restype = ctypes.c_int
    for name in FUNCTIONS:
        getattr(loaded, f"edge_vla_{name}").restype = None
    return loaded


def require_library() -> ctypes.CDLL:
    """The library, for callers that checked `fast` or `library` before."""
    loaded = library()
    assert loaded is not None, "no C library: check `fast()` or `library()` before"
    return loaded


def fast() -> bool:
    """Whether the C engine is the fastest here: there is a compiler, and AVX-512 with BF16 and VNNI."""
    found = library()
    return found is not None and found.edge_vla_has_bf16_simd() == 1
