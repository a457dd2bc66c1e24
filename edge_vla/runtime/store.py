"""The user's cache directory, and small JSON tables in it that outlive a run.

A table that is missing, damaged or not ours counts as empty; one that cannot be written is not kept.
"""

from __future__ import annotations

import json
import os
import platform
import stat
from functools import cache
from pathlib import Path

from edge_vla.errors import ResourceError
from edge_vla.files import write_whole

MOST = 512  # entries in a table; the oldest are dropped first


def user_cache() -> Path:
    """`~/.cache/edge-vla`, or under XDG_CACHE_HOME; created if missing. OSError where others may write to it."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from error
    directory = base / "edge-vla"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{directory} can be written by others: no code is loaded from it; run chmod go-w {directory}")
    return directory


@cache
def processor() -> str:
    """The processor's name and features, which tell one machine from another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    wanted = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join(dict.fromkeys(wanted)) or platform.processor() or platform.machine()


def remembered(name: str) -> dict[str, str]:
    try:
        table = json.loads((user_cache() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(table, dict) and all(isinstance(value, str) for value in table.values())
    return table if sound else {}


def remember(name: str, key: str, value: str) -> None:
    table = remembered(name)
    table.pop(key, None)
    table[key] = value
    try:
        write_whole(user_cache() / name, json.dumps(dict(list(table.items())[-MOST:]), indent=0))
    except (OSError, ResourceError):
        return
