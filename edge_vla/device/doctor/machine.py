"""Memory, swap, heat, disk, clock: what a policy shares with everything else on the machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_vla.device import memory as available
from edge_vla.device import sensors
from edge_vla.device.doctor.check import RESOURCE, Found, failure, note, warning
from edge_vla.device.doctor.system import System

LEAST_BYTES: Final = 1e9  # below this not even the demo policy loads
LITTLE_BYTES: Final = 4e9  # about what the 7B in 4 bits takes
HOT_C: Final = 85.0  # where the zone names no trip point of its own
MARGIN_C: Final = 5.0
READS: Final = 4
READ_BYTES: Final = 64 << 20  # of one read
READ_S: Final = 0.5
BLOCK: Final = 4 << 20
SLOW_DISK: Final = 80e6  # bytes a second: an SD card; 4 GB take a minute
LEAST_DISK: Final = 1e9


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def memory(system: System) -> Found:
    """What can be allocated: on a Jetson the GPU's memory too."""
    free, total = available.available_bytes(system.root), available.total_bytes(system.root)
    if free is None or total is None:
        return note("free memory is not visible here")
    found = f"{gigabytes(free)} free of {gigabytes(total)}{' shared with the GPU' if system.jetson else ''}"
    if (cma := _meminfo(system, "CmaTotal")) and system.jetson:
        found += f", CMA {gigabytes(_meminfo(system, 'CmaFree') or 0)} free of {gigabytes(cma)}"
    headless = "; sudo systemctl isolate multi-user.target  # stops the desktop" if system.jetson else ""
    remedy = f"ps aux --sort=-rss | head{headless}"
    if free < LEAST_BYTES:
        return failure(found, remedy, RESOURCE)
    return warning(found, remedy) if free < LITTLE_BYTES else Found(found)


def _meminfo(system: System, field: str) -> int | None:
    match = re.search(rf"^{field}:\s+(\d+) kB", system.text("proc/meminfo") or "", re.M)
    return int(match[1]) * 1024 if match else None


def swap(system: System) -> Found:
    """zram compresses in the memory that the GPU shares, and takes cores when it does."""
    rows = [line.split() for line in (system.text("proc/swaps") or "").splitlines()[1:]]
    used = sum(int(row[3]) for row in rows if len(row) > 3 and row[3].isdigit()) * 1024
    zram = any("zram" in row[0] for row in rows if row)
    found = f"{len(rows)} {'zram' if zram else 'swap'} areas, {gigabytes(used)} used" if rows else "no swap"
    if system.jetson and zram:
        return warning(f"{found}: it takes the GPU's memory and cores", "sudo systemctl disable --now nvzramconfig")
    if used > LEAST_BYTES:
        return warning(f"{found}: a page of weights may be on disk", "sudo swapoff -a && sudo swapon -a")
    return Found(found)


def heat(system: System) -> Found:
    """The zone nearest to where it throttles, and what has throttled."""
    slowed = sorted({why for gpu in system.gpus for why in gpu.throttled_by})
    cooling = (
        "sudo jetson_clocks --fan  # and let it cool"
        if system.jetson
        else "nvidia-smi -q -d TEMPERATURE  # and check fans and dust"
    )
    if slowed:
        return warning(f"the GPU is slowed: {', '.join(slowed)}", "nvidia-smi -q -d PERFORMANCE")
    zones = sensors.temperatures(system.root)
    if not zones:
        return note("no temperature is visible")
    limits = _trips(system)
    name = max(zones, key=lambda zone: zones[zone] - limits.get(zone, HOT_C))
    limit = limits.get(name, HOT_C)
    found = f"{name} {zones[name]:.0f} °C, throttles at {limit:.0f}"
    if zones[name] >= limit - MARGIN_C:
        return warning(found, cooling)
    events = system.jetson.over_current_events if system.jetson else None
    if events:
        return warning(
            f"{found}; {events} over-current events since boot",
            "sudo nvpmodel -q --verbose  # a stronger supply, or a mode of fewer watts",
        )
    return Found(found)


def _trips(system: System) -> dict[str, float]:
    """The lowest passive trip point of each zone, in degrees Celsius: from there the kernel lowers clocks."""
    found: dict[str, float] = {}
    for zone in sorted((system.root / "sys/class/thermal").glob("thermal_zone*")):
        folder = str(zone.relative_to(system.root))
        for kind in sorted(zone.glob("trip_point_*_type")):
            point = f"{folder}/{kind.name.replace('_type', '_temp')}"
            degrees = system.text(point) or ""
            if system.text(f"{folder}/{kind.name}") == "passive" and degrees.lstrip("-").isdigit() and int(degrees) > 0:
                name = system.text(f"{folder}/type") or zone.name
                found[name] = min(found.get(name, 1e9), int(degrees) / 1e3)
    return found


def disk(system: System, artifact: Path | None) -> Found:
    """Room for the cache, and how fast the artifact's disk reads: 256 MB or about two seconds at most."""
    folder = artifact if artifact is not None and artifact.is_dir() else Path.home()
    free = system.free_disk(folder)
    found = f"{gigabytes(free)} free at {folder}"
    if free < LEAST_DISK:
        return failure(found, f"df -h {folder}; pip cache purge", RESOURCE)
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()] if folder is artifact else []
    rate = read_rate(max(files, key=lambda path: path.stat().st_size)) if files else None
    if rate is None:
        return Found(found)
    found = f"{found}, reads {rate / 1e6:.0f} MB/s"
    if rate < SLOW_DISK:
        return warning(found, f"cp -r {folder} NVME_DISK  # loading takes longer, actions do not")
    return Found(found)


def read_rate(path: Path) -> float | None:
    """Bytes a second of one file's start, from the disk where the system lets go of its cached pages."""
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, READS * READ_BYTES, os.POSIX_FADV_DONTNEED)
            return best_rate(file.read)
    except OSError:
        return None


def best_rate(read: Callable[[int], bytes | None], now: Callable[[], float] = time.perf_counter) -> float | None:
    """Bytes a second of the fastest of a few reads that follow each other: other work on the machine slows some."""
    best, end = None, now() + READS * READ_S
    for _ in range(READS):
        started, size = now(), 0
        while size < READ_BYTES and now() - started < READ_S and (block := read(BLOCK)):
            size += len(block)
        seconds = now() - started
        if size >= BLOCK and seconds > 0:  # less says nothing
            best = max(best or 0.0, size / seconds)
        if now() >= end:
            break
    return best


def clock(system: System) -> Found:
    """Stamps of observations and actions are compared across machines: the clock must be set by someone."""
    synchronised = (system.run(("timedatectl", "show", "-p", "NTPSynchronized", "--value")) or "").strip()
    if synchronised == "yes":
        return Found("the clock is synchronised")
    tracking = system.run(("chronyc", "tracking")) or ""
    if re.search(r"^Leap status\s*:\s*Normal", tracking, re.M):
        offset = re.search(r"^System time\s*:\s*([\d.]+) seconds", tracking, re.M)
        return Found(
            f"the clock is synchronised by chrony{f', off by {float(offset[1]) * 1e3:.1f} ms' if offset else ''}"
        )
    if synchronised == "no" or tracking:
        return warning(
            "the clock is not synchronised: ages of observations from other machines are wrong",
            "sudo timedatectl set-ntp true  # offline: chrony, with the robot's computer as server",
        )
    return note("who sets the clock is not visible (a container?)")
