"""C compiled by the machine's own compiler into the user's cache, once for each compiler, command and text.

`EDGE_VLA_NATIVE=0` turns the compiler off.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_vla.errors import BackendError
from edge_vla.files import sync
from edge_vla.processor import machine
from edge_vla.runtime.store import user_cache

COMPILERS: Final = ("cc", "gcc", "clang")
OFF: Final = "EDGE_VLA_NATIVE"  # an environment variable
SEAL: Final = 32  # bytes of a SHA-256
PATIENCE: Final = 300  # seconds; the slowest target takes ten here


class CannotCompileError(BackendError):
    """Nothing compiles here, whatever is asked for: no compiler, one that hangs, no cache."""


def off() -> bool:
    """Whether the user wants no C at all."""
    return os.environ.get(OFF) == "0"


def compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def compiled(name: str, words: Sequence[str], about: str = "") -> Path:
    """The library that `words`, sources and flags, make; compiled again when they, `about` or the compiler change.

    A kept file that is not whole is made again. Raises BackendError where C does not compile, CannotCompileError
    without a compiler that runs, and where the cache cannot be used.
    """
    program = compiler()
    if program is None:
        raise CannotCompileError("no C compiler (cc, gcc or clang): install one, or a wheel that brings the library")
    version = _run([program, "--version"])[1]
    key = hashlib.sha256(bytes(1).join([version, "\0".join([machine(), about, *words]).encode()])).hexdigest()[:16]
    try:
        kept = user_cache() / f"{name}-{key}.so"
        if not sealed(kept):
            with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
                made = Path(beside) / kept.name
                _make(name, [program, "-o", str(made), *words], made)
                made.replace(kept)
    except OSError as error:
        raise CannotCompileError(
            f"{name} cannot be kept in the user's cache: {error}; set XDG_CACHE_HOME to a folder of your own"
        ) from error
    return kept


def sealed(path: Path) -> bool:
    """Whether the file ends in the SHA-256 of all before it: whole, and not changed since it was made."""
    content = path.read_bytes() if path.is_file() else b""
    return content[-SEAL:] == hashlib.sha256(content[:-SEAL]).digest()


def _make(name: str, command: Sequence[str], made: Path) -> None:
    """Compile, and seal what came out. Loaders ignore what follows the last section."""
    status, said = _run(command)
    if status != 0 or not made.is_file():
        lines = said.decode(errors="replace").strip().splitlines()
        wrong = next((line for line in lines if "error" in line), lines[0] if lines else f"it made no file ({status})")
        raise BackendError(f"{name} does not compile with {command[0]}: {wrong}; {OFF}=0 leaves it out")
    with made.open("ab") as file:
        file.write(hashlib.sha256(made.read_bytes()).digest())
    sync(made)


def _run(command: Sequence[str]) -> tuple[int, bytes]:
    """Exit status and what was printed. CannotCompileError if it does not start or does not end."""
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        raise CannotCompileError(f"{command[0]} does not run: {error}; {OFF}=0 leaves C out") from error
    with child:
        try:
            said, _ = child.communicate(timeout=PATIENCE)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # what it started too, which would hold the pipe open
            if isinstance(error, subprocess.TimeoutExpired):
                raise CannotCompileError(
                    f"{command[0]} did not end within {PATIENCE} s: try it by hand; {OFF}=0 leaves C out"
                ) from error
            raise
    return child.returncode, said
