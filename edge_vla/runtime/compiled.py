"""C compiled by the machine's own compiler into the user's cache, once for each compiler, command and text.

`EDGE_VLA_NATIVE=0` turns the compiler off.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_vla.errors import BackendError
from edge_vla.processor import machine
from edge_vla.runtime.store import user_cache

COMPILERS: Final = ("cc", "gcc", "clang")
OFF: Final = "EDGE_VLA_NATIVE"  # an environment variable


def off() -> bool:
    """Whether the user wants no C at all."""
    return os.environ.get(OFF) == "0"


def compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def compiled(name: str, words: Sequence[str], about: str = "") -> Path:
    """The library that `words`, sources and flags, make; compiled again when they, `about` or the compiler change.

    Raises BackendError without a compiler, where C does not compile, and where the cache cannot be used.
    """
    program = compiler()
    if program is None:
        raise BackendError("no C compiler (cc, gcc or clang): install one, or a wheel that brings the library")
    version = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(bytes(1).join([version, "\0".join([machine(), about, *words]).encode()])).hexdigest()[:16]
    try:
        kept = user_cache() / f"{name}-{key}.so"
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
                made = Path(beside) / kept.name
                subprocess.run([program, "-o", str(made), *words], capture_output=True, check=True)
                made.replace(kept)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        wrong = next((line for line in said if "error" in line), said[0] if said else "no message")
        raise BackendError(f"{name} does not compile with {program}: {wrong}; {OFF}=0 leaves it out") from error
    except OSError as error:
        raise BackendError(f"{name} cannot be kept in the user's cache: {error}") from error
    return kept
