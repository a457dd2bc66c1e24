"""How much memory this process may use: the machine's, or its control group's where that is less.

Reads the kernel's files below `root`, so recorded trees test it. Knows Linux, and cgroups of both versions; elsewhere
every figure is None. Bytes throughout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

ROOT: Final = Path("/")

# Folder of the memory controller, files of limit and use, and the reclaimable page cache within that use.
CGROUP_V1: Final = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2: Final = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available_bytes(root: Path = ROOT) -> int | None:
    """What can still be allocated without swapping. None where the system does not say."""
    free = _kilobytes(root / "proc/meminfo", "MemAvailable")
    if free is None:
        return None
    return max(0, min([free, *(limit - used for limit, used in _limits_and_use(root))]))


def total_bytes(root: Path = ROOT) -> int | None:
    """All the memory that this process could ever have. None where the system does not say."""
    total = _kilobytes(root / "proc/meminfo", "MemTotal")
    return None if total is None else min([total, *(limit for limit, _ in _limits_and_use(root))])


def resident_bytes(pid: int | None = None, root: Path = ROOT) -> int:
    """Resident set of a process (default: this one); 0 if it has gone."""
    return _kilobytes(root / "proc" / str(pid or "self") / "status", "VmRSS") or 0


def peak_resident_bytes(pid: int | None = None, root: Path = ROOT) -> int:
    """Largest resident set of a process so far (default: this one), by the kernel's count; 0 if it has gone."""
    return _kilobytes(root / "proc" / str(pid or "self") / "status", "VmHWM") or 0


def _limits_and_use(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, without reclaimable cache, of every control group that this process is in."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit, use, cache = CGROUP_V1 if controllers else CGROUP_V2
        inside = PurePosixPath(path.lstrip("/"))
        # In a container without a namespace of its own the path may lie outside the mount, which then is the group.
        for folder in (root / mount / part for part in (inside, *inside.parents)):
            with contextlib.suppress(OSError, ValueError):  # no such group, or a limit of "max"
                bound, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit, use))
                reclaimable = [int(row.split()[1]) for row in _lines(folder / "memory.stat") if row.split()[0] == cache]
                yield bound, used - sum(reclaimable)


def _kilobytes(path: Path, field: str) -> int | None:
    """A field that the kernel gives in kB, as bytes."""
    for line in _lines(path):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
