"""C compiled once by the machine's own compiler, kept in the user's cache and loaded.

Without a compiler torch's operators run instead, slower. `EDGE_VLA_NATIVE=0` turns the compiler off.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_vla.runtime.store import processor, user_cache

LOG: Final = logging.getLogger(__name__)
X86: Final = platform.machine() in ("x86_64", "AMD64")
FLAGS: Final = ("-O3", "-march=native", *(["-mprefer-vector-width=512"] if X86 else []), "-fPIC", "-shared")


def compiled(name: str, sources: Sequence[Path], read: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL | None:
    """`sources` as a loaded library; None without a compiler, or where the library does not compile or load.

    Compiled again when the compiler, the processor, a flag or one of the files in `read` changes.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("EDGE_VLA_NATIVE") == "0" or compiler is None:
        return None
    words = [*FLAGS, *flags]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    about = [
        *(path.read_bytes() for path in read),
        version,
        " ".join([platform.machine(), processor(), *words]).encode(),
    ]
    file = f"{name}-{hashlib.sha256(bytes(1).join(about)).hexdigest()[:16]}.so"
    try:
        directory = user_cache()
        target = directory / file
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=directory) as beside:
                made = Path(beside) / file
                command = [compiler, *words, "-o", str(made), *map(str, sources), "-lm"]
                subprocess.run(command, capture_output=True, check=True)
                made.replace(target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        LOG.warning("the C engine does not compile, torch's operators run instead: %s", said.strip() or error)
        return None
