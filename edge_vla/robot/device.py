"""What helps where a camera's or a port's device may not be opened. Knows no camera and no link."""

from __future__ import annotations

from pathlib import Path


def permission(path: Path) -> str:
    """The group of a device, and the next command. A container knows no name for the groups of its host."""
    try:
        group = path.group()
    except KeyError:
        group = str(path.stat().st_gid)
        return f"(its group is {group}, which has no name here): let the container have that group"
    return f"(its group is {group}): sudo usermod -aG {group} $USER, then log in again"
