"""Where, when and by what a figure was measured: command, commit, device, versions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from edge_vla.device.sensors import DeviceState
from edge_vla.files import PACKAGE
from edge_vla.version import __version__


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """`load_average` over the last minute; `commit` ends in `+changes` where the source tree differs from it."""

    command: str
    commit: str | None
    time: str
    device: str
    cores: int | None
    threads: int | None
    load_average: float | None
    python: str
    torch: str
    edge_vla: str
    device_state: DeviceState | None = None


def provenance(device_state: DeviceState | None = None) -> Provenance:
    """This process, machine and source tree, now."""
    return Provenance(
        command=shlex.join(map(without_directory, sys.argv)),
        commit=commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=torch.__version__,
        edge_vla=__version__,
        device_state=device_state,
    )


def without_directory(word: str) -> str:
    """An absolute path's last name, after `NAME=` too: a committed result must not show somebody's disk."""
    if Path(word).is_absolute():
        return Path(word).name
    name, equals, path = word.partition("=")
    return name + equals + Path(path).name if Path(path).is_absolute() else word


def device_name() -> str:
    """The GPU if torch sees one, else the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of the source tree that this package runs from; None when installed."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", "edge_vla"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
