"""Whether an export can finish: disk, memory and permission, asked before the first byte is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from edge_vla.device.memory import available_bytes
from edge_vla.errors import ResourceError
from edge_vla.files import file_size

SPARE: Final = 1.1  # times what will be used must be free


def check_disk(out: Path, need: int) -> None:
    """ResourceError if `need` bytes do not fit where `out` will stand, or if nothing may be written there."""
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need * SPARE:
        raise ResourceError(
            f"{out} needs {file_size(int(need * SPARE))}, {parent} has {file_size(free)} free: free some, or choose "
            "another --out"
        )
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(f"cannot write {out}: Permission denied in {parent}")


def check_memory(what: str, need: int, remedy: str) -> None:
    """ResourceError if this machine, or the container around this process, has less than `need` bytes to give."""
    free = available_bytes()
    if free is not None and free < need * SPARE:
        need_gib, free_gib = need * SPARE / 2**30, free / 2**30
        raise ResourceError(f"{what} needs {need_gib:.1f} GiB of memory, {free_gib:.1f} GiB is free: {remedy}")
