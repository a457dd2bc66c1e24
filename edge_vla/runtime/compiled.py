"""C made into a loaded library by the machine's own compiler, once, and kept in the user's cache.

Without a compiler nothing is lost but speed: torch's operators run instead. `EDGE_VLA_NATIVE=0` says so on purpose.
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
    """`sources` as a library, or None where there is no compiler, or what it made does not load.

    It is made anew when any file that is `read`, the compiler, the processor or a flag is another.
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
        LOG.warning("no C engine, torch's operators run instead: %s", said.strip() or error)
        return None
