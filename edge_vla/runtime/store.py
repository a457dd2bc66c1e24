"""What may be remembered between runs on one machine: a directory of the user's own, and small JSON tables in it.

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

MOST = 512  # entries in a table; the oldest go first


def user_cache() -> Path:
    """`~/.cache/edge-vla`, or under XDG_CACHE_HOME, made if need be. OSError where it fails or others may write."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from error
    directory = base / "edge-vla"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = directory.stat()
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{directory} can be written by others: code is not loaded from there")
    return directory


@cache
def processor() -> str:
    """The processor's own name, and its features, so that a change of machine is seen."""
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
