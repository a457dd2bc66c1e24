"""The C files beside this one as a loaded library: one for each target, installed with the package or compiled here.

The processor is asked before anything is compiled, the library before anything in it is called.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from functools import cache
from pathlib import Path
from typing import Final

from edge_vla.errors import BackendError
from edge_vla.runtime.compiled import OFF, CannotCompileError, compiled, off
from edge_vla.runtime.cpu.native import targets
from edge_vla.runtime.cpu.native.structs import STRUCTS
from edge_vla.runtime.cpu.native.targets import INSTALLED, SCALAR, Target

LOG: Final = logging.getLogger(__name__)
AGAIN: Final = "remove it, and it is made again where there is a C compiler; or install edge-vla again"
ELF64: Final = b"\x7fELF\x02"
FUNCTIONS: Final = ("decode", "decode_steps", "vision", "gemm", "argmax", "dequantise_int4")


def load(target: Target) -> ctypes.CDLL:
    """The library of a target. BackendError where it cannot run, be made or be loaded here: says what to do."""
    if off():
        raise BackendError(f"{OFF}=0 turns the C engine off: unset it, or leave --kernel out")
    return _load(targets.named(target.name))


def chosen() -> Target | None:
    """The best target that this processor can run and whose library is there; None: torch's products run instead.

    Plain C is slower than torch's products, so only its name chooses it. EDGE_VLA_TARGET is a name too.
    """
    if off():
        return None
    forced = targets.forced()
    if forced is not None:
        load(forced)
        return forced
    return _best()


def library(target: Target | None = None) -> ctypes.CDLL | None:
    """That of `target`, errors as of `load`; or of `chosen()`, None where nothing is."""
    found = target or chosen()
    return load(found) if found else None


def fast() -> bool:
    """Whether the C engine is faster than torch's products here."""
    found = chosen()
    return found is not None and found != SCALAR


def wanted(name: str | None) -> Target | None:
    """The target after `@`, errors as of `load`; without a name `chosen()`."""
    if name is None:
        return chosen()
    target = targets.named(name)
    load(target)
    return target


def require_library(target: Target | None = None) -> ctypes.CDLL:
    """The library, for callers that checked `fast` or `library` before."""
    loaded = library(target)
    assert loaded is not None, "no C library: check `fast()` or `library()` before"
    return loaded


def forget() -> None:
    """Look again: for tests, which change the machine."""
    _load.cache_clear()
    _best.cache_clear()


@cache
def _best() -> Target | None:
    compiles = True
    for target in targets.runnable():
        if target == SCALAR:
            break
        if not compiles and _installed(target) is None:
            continue
        try:
            _load(target)
        except BackendError as error:
            compiles = compiles and not isinstance(error, CannotCompileError)
            LOG.warning("the C engine for %s is not there: %s", target.name, error)
        else:
            return target
    LOG.info("torch's products run: %s", why_none())
    return None


def why_none() -> str:
    """Why `chosen()` has nothing, for a line of text."""
    if off():
        return f"{OFF}=0 turns the C engine off"
    if targets.runnable() == (SCALAR,):
        names = ", ".join(target.name for target in reversed(targets.written()) if target != SCALAR)
        return f"the C engine needs the instructions of one of {names}; plain C only by --kernel native@scalar"
    return "no library of the C engine is installed, and no C compiler makes one"


@cache
def _load(target: Target) -> ctypes.CDLL:
    path = _installed(target)
    if path is None:
        path = compiled(f"network-{target.name}", targets.words(target), targets.fingerprint(target))
    return opened(path, target)


def _installed(target: Target) -> Path | None:
    """The library that came with the package, unless the C files have changed since."""
    path = INSTALLED / targets.file_name(target)
    return path if path.exists() else None


def opened(path: Path, target: Target) -> ctypes.CDLL:
    """A file as the library of `target`: BackendError if it is not, or if it needs more than this processor has."""
    try:
        _require_whole(path)
        loaded = ctypes.CDLL(str(path))
        built, of = (ctypes.c_char.in_dll(loaded, f"edge_vla_{name}") for name in ("target", "fingerprint"))
        for name in ("runs_here", *FUNCTIONS):
            getattr(loaded, f"edge_vla_{name}").restype = None
    except (OSError, AttributeError, ValueError) as error:
        raise BackendError(f"{path} does not load: {error}; {AGAIN}") from error
    if (name := _text(built)) != target.name:
        raise BackendError(f"{path} was built for {name}, not for {target.name}: {AGAIN}")
    if _text(of) != targets.fingerprint(target):
        raise BackendError(f"{path} was built from other C files: {AGAIN}")
    loaded.edge_vla_runs_here.restype = ctypes.c_int
    if not loaded.edge_vla_runs_here():
        raise BackendError(f"{path} needs instructions that this processor lacks: it has {targets.listed()}")
    sizes = list((ctypes.c_int64 * len(STRUCTS)).in_dll(loaded, "edge_vla_struct_sizes"))
    differ = [one.__name__ for one, size in zip(STRUCTS, sizes, strict=True) if ctypes.sizeof(one) != size]
    assert not differ, f"structs.py and structs.h differ in {differ}"
    return loaded


def _text(characters: ctypes.c_char) -> str:
    return ctypes.string_at(ctypes.addressof(characters)).decode(errors="replace")


def _require_whole(path: Path) -> None:
    """OSError where an ELF file ends before its segments do: to load it would end the process by SIGBUS."""
    content = path.read_bytes()
    if content[:5] != ELF64:
        return  # the loader refuses it with a message
    try:
        (table,), (size, count) = struct.unpack_from("<Q", content, 0x20), struct.unpack_from("<HH", content, 0x36)
        segments = [struct.unpack_from("<Q16xQ", content, table + size * index + 8) for index in range(count)]
    except struct.error as error:
        raise OSError("cut short in its header") from error
    if (end := max((begin + length for begin, length in segments), default=0)) > len(content):
        raise OSError(f"cut short: {len(content)} bytes of {end}")
