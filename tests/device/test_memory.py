"""Memory that a process may use, from trees of `/proc` and `/sys/fs/cgroup` after the kernel's documentation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_vla.device.memory import available_bytes, peak_resident_bytes, resident_bytes, total_bytes

MB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="ascii")
    return root


def machine(root: Path, **files: str) -> Path:
    """A machine of 9000 kB, 2000 kB of them available."""
    return write(root, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:       2000 kB"} | files)


def test_without_a_control_group_the_machine_s_memory_counts(tmp_path: Path) -> None:
    assert available_bytes(machine(tmp_path)) == 2000 * 1024
    assert total_bytes(tmp_path) == 9000 * 1024


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    assert total_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "used", "available", "total"),
    [("max", 5, 2_048_000, 9_216_000), ("1500", 500, 1000, 1500), ("99999999", 0, 2_048_000, 9_216_000),
     ("100", 500, 0, 100)],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/system.slice/robot.service", "/kubepods/of/the/host"])
def test_cgroup_version_2(limit: str, used: int, available: int, total: int, path: str, tmp_path: Path) -> None:
    inside = path if path.startswith("/system") else "/"  # a container sees its own group as the root
    files = {
        "proc/self/cgroup": f"0::{path}",
        f"sys/fs/cgroup{inside}/memory.max": limit,
        f"sys/fs/cgroup{inside}/memory.current": str(used),
    }
    root = write(machine(tmp_path), files)
    assert (available_bytes(root), total_bytes(root)) == (available, total)


def test_a_parent_s_limit_holds_too(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b"}
    for folder, limit, used in (("a", "1000", "700"), ("a/b", "max", "300")):
        files |= {f"sys/fs/cgroup/{folder}/memory.max": limit, f"sys/fs/cgroup/{folder}/memory.current": used}
    assert available_bytes(write(machine(tmp_path), files)) == 300


def test_cgroup_version_1_and_its_reclaimable_cache(tmp_path: Path) -> None:
    """Files that were read fill the group; what is cached of them is given back when memory is asked for."""
    folder = "sys/fs/cgroup/memory/docker/abc"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/unified",
        f"{folder}/memory.limit_in_bytes": "1000",
        f"{folder}/memory.usage_in_bytes": "900",
        f"{folder}/memory.stat": "cache 800\ntotal_inactive_file 600\ninactive_file 1",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # none
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000",
    }
    root = write(machine(tmp_path), files)
    assert (available_bytes(root), total_bytes(root)) == (700, 1000)


def test_this_process() -> None:
    before = peak_resident_bytes()
    held = b"x" * (64 * MB)
    assert peak_resident_bytes() >= resident_bytes() >= len(held)
    assert resident_bytes(os.getpid()) == pytest.approx(resident_bytes(), rel=0.1)
    assert peak_resident_bytes() >= before
    assert resident_bytes(2**30) == 0, "no such process"
