"""How many threads a computation should have here: the cores that it may use, and as many as make it faster.

Reads Linux's own accounts below a root: sysfs for topology and power modes, the control group for a quota, the
scheduler for affinity. Imports the standard library alone, because it is asked before torch is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

CPU: Final = "sys/devices/system/cpu"
SAME_KIND: Final = 0.9  # of the capacity of the core before
WORTH_IT: Final = 1.25  # times as fast with slower cores too
EQUAL: Final = 1024  # the capacity of a core whose kind is not said; Linux's number for the fastest


@dataclass(frozen=True)
class Cores:
    """`online` processors that this process may run on; `physical` cores among them, on which hyper-threads share.

    `fast` of those share equal work best: slow cores would be waited for. `quota`: cores' worth of time that the
    control group gives, None without a limit.
    """

    online: int
    physical: int
    fast: int
    quota: float | None

    @property
    def threads(self) -> int:
        """One for each fast core, within the quota: a thread more would be stopped for part of every period."""
        return max(1, self.fast if self.quota is None else min(self.fast, int(self.quota)))

    def __str__(self) -> str:
        """`6 threads: 20 processors, 14 cores, the 6 fastest`."""
        parts = [f"{self.online} processors"]
        if self.physical < self.online:
            parts.append(f"{self.physical} cores")
        if self.fast < self.physical:
            parts.append(f"the {self.fast} fastest")
        if self.quota is not None and self.quota < self.fast:
            parts.append(f"{self.quota:g} by the control group")
        return f"{self.threads} thread{'s'[: self.threads > 1]}: {', '.join(parts)}"


def look(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> Cores:
    """The cores of the machine below `root`. `allowed`: processors that this process may run on, default: ask."""
    may = set(affinity() if allowed is None else allowed)
    switched_on = _list(root / CPU / "online")
    online = sorted(may & switched_on if switched_on and may & switched_on else may)
    capacities = dict[tuple[int, ...], int]()  # of a core, by the processors that share it
    for processor in online:
        core = tuple(sorted(_siblings(root, processor) & set(online) or {processor}))
        capacities[core] = _capacity(root, processor)
    known = [capacity for capacity in capacities.values() if capacity]
    return Cores(len(online), len(capacities), _fast(known) or len(capacities), quota(root))


def affinity() -> set[int]:
    """Processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def quota(root: Path) -> float | None:
    """The least that the control group of this process and those above it allow, in both versions of cgroups."""
    limits = [limit for group in _groups(root) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def _fast(capacities: list[int]) -> int:
    """How many cores to share equally among: n threads end with the slowest of the n fastest cores.

    All of a kind or none; a slower kind only where it gains enough, since every stage waits for it.
    """
    descending = sorted(capacities, reverse=True)
    kinds = [n for n, (core, other) in enumerate(pairwise([*descending, 0]), 1) if other < core * SAME_KIND]
    rates = {n: n * descending[n - 1] for n in kinds}
    return next((n for n, rate in rates.items() if rate * WORTH_IT >= max(rates.values())), 0)


def _capacity(root: Path, processor: int) -> int:
    """Relative speed of a core; 0 for an efficiency core of an Intel hybrid, whose speed Linux does not say."""
    said = _text(root / CPU / f"cpu{processor}" / "cpu_capacity")
    if said.isdigit():
        return int(said)
    hybrid = _list(root / "sys/devices/cpu_core/cpus")
    return 0 if hybrid and processor in _list(root / "sys/devices/cpu_atom/cpus") else EQUAL


def _siblings(root: Path, processor: int) -> set[int]:
    topology = root / CPU / f"cpu{processor}" / "topology"
    return _list(topology / "core_cpus_list") or _list(topology / "thread_siblings_list")  # the latter before Linux 5.2


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, each with those above it; inside a container its own."""
    tops = {"": root / "sys/fs/cgroup", "cpu": root / "sys/fs/cgroup/cpu"}
    found = dict.fromkeys(tops.values())
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        kind = "cpu" if "cpu" in controllers.split(",") else controllers
        if kind in tops:
            group = tops[kind] / path.lstrip("/")
            found |= dict.fromkeys(folder for folder in (group, *group.parents) if folder.is_relative_to(tops[kind]))
    yield from found


def _limit(group: Path) -> float | None:
    second = _text(group / "cpu.max").split()
    first = [_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    for pair in (second, first):
        if len(pair) == 2 and all(word.isdigit() for word in pair) and int(pair[1]) > 0:
            return int(pair[0]) / int(pair[1])
    return None


def _list(path: Path) -> set[int]:
    """`0-3,8` as processors; empty where the file is not there or says anything else."""
    spans = re.findall(r"(\d+)(?:-(\d+))?", _text(path)) if re.fullmatch(r"[\d,-]+", _text(path)) else []
    return {number for first, last in spans for number in range(int(first), int(last or first) + 1)}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
