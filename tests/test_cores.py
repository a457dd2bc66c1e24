"""How many threads: on trees as Linux shows laptops, phones, Jetsons and containers, none of them this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from edge_vla import cores
from edge_vla.cores import Cores

CPU = "sys/devices/system/cpu"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n", encoding="utf-8")
    return root


def topology(groups: Sequence[str], online: str) -> dict[str, str]:
    """`groups`: the hyper-threads of each core, as Linux lists them."""
    files = {f"{CPU}/online": online}
    for group in groups:
        first, _, last = group.partition("-")
        for number in range(int(first), int(last or first) + 1):
            files[f"{CPU}/cpu{number}/topology/core_cpus_list"] = group
    return files


def capacities(*values: int) -> dict[str, str]:
    return {f"{CPU}/cpu{number}/cpu_capacity": str(value) for number, value in enumerate(values)}


# Six performance cores with two threads each, eight efficiency cores.
HYBRID = {
    **topology([f"{first}-{first + 1}" for first in range(0, 12, 2)] + [str(n) for n in range(12, 20)], "0-19"),
    "sys/devices/cpu_core/cpus": "0-11",
    "sys/devices/cpu_atom/cpus": "12-19",
}
DESKTOP = topology(["0-1", "2-3", "4-5", "6-7"], "0-7")  # threads of a core side by side
OLD = {f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}  # before Linux 5.2
RK3588 = {**topology([str(n) for n in range(8)], "0-7"), **capacities(414, 414, 414, 414, 1024, 1024, 1024, 1024)}
NEAR = {**topology([str(n) for n in range(8)], "0-7"), **capacities(530, 530, 530, 530, 1024, 1010, 1024, 1010)}
PRIME = {**topology([str(n) for n in range(8)], "0-7"), **capacities(400, 400, 400, 400, 900, 900, 900, 1024)}
TWO_BIG = {**topology([str(n) for n in range(8)], "0-7"), **capacities(500, 500, 500, 500, 500, 500, 1024, 1024)}
ORIN_15W = topology([str(n) for n in range(12)], "0-3")  # `nvpmodel -m 1` of a 32 GB AGX: eight cores are off


@pytest.mark.parametrize(
    ("files", "allowed", "expected", "threads"),
    [
        pytest.param({}, range(4), Cores(4, 4, 4, None), 4, id="nothing visible"),
        pytest.param(DESKTOP, range(8), Cores(8, 4, 4, None), 4, id="hyper-threads"),
        pytest.param(OLD, range(8), Cores(8, 4, 4, None), 4, id="an older Linux"),
        pytest.param(DESKTOP, [0, 2, 4], Cores(3, 3, 3, None), 3, id="affinity"),
        pytest.param(DESKTOP, [6, 7], Cores(2, 1, 1, None), 1, id="affinity, one core's two threads"),
        pytest.param(HYBRID, range(20), Cores(20, 14, 6, None), 6, id="Intel's hybrid"),
        pytest.param(HYBRID, range(12, 20), Cores(8, 8, 8, None), 8, id="its efficiency cores alone"),
        pytest.param(RK3588, range(8), Cores(8, 8, 4, None), 4, id="four big, four little"),
        pytest.param(NEAR, range(8), Cores(8, 8, 4, None), 4, id="all eight gain too little"),
        pytest.param(RK3588, range(4), Cores(4, 4, 4, None), 4, id="the little ones alone"),
        pytest.param(PRIME, range(8), Cores(8, 8, 4, None), 4, id="one prime, three big"),
        pytest.param(TWO_BIG, range(8), Cores(8, 8, 8, None), 8, id="two big are slower than all eight"),
        pytest.param(ORIN_15W, range(12), Cores(4, 4, 4, None), 4, id="a Jetson's power mode"),
    ],
)
def test_threads_are_as_many_as_fast_cores(
    tmp_path: Path, files: Mapping[str, str], allowed: Sequence[int], expected: Cores, threads: int
) -> None:
    found = cores.look(tree(tmp_path, files), allowed)
    assert (found, found.threads) == (expected, threads)


V1 = "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a"


@pytest.mark.parametrize(
    ("files", "quota", "threads"),
    [
        pytest.param({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0, 2, id="v2, in a container"),
        pytest.param({"sys/fs/cgroup/cpu.max": "max 100000"}, None, 8, id="v2, no limit"),
        pytest.param({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5, 1, id="a part of a core is no core"),
        pytest.param({"sys/fs/cgroup/cpu.max": "20000 100000"}, 0.2, 1, id="less than a core"),
        pytest.param({"sys/fs/cgroup/cpu.max": "0 0"}, None, 8, id="nonsense"),
        pytest.param(
            {"proc/self/cgroup": "0::/robot.slice/vla.service",
             "sys/fs/cgroup/robot.slice/vla.service/cpu.max": "max 100000",
             "sys/fs/cgroup/robot.slice/cpu.max": "300000 100000"},
            3.0, 3, id="v2, a limit of the slice above",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "100000 100000",
             "sys/fs/cgroup/a/b/cpu.max": "400000 100000"},
            1.0, 1, id="v2, the least of all",
        ),
        pytest.param(
            {"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "400000",
             "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000"},
            4.0, 4, id="v1",
        ),
        pytest.param(
            {"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
             "sys/fs/cgroup/cpu/cpu.cfs_period_us": "25000"},
            2.0, 2, id="v1, in a container",
        ),
        pytest.param(
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None, 8, id="v1, no limit",
        ),
        pytest.param({"proc/self/cgroup": "0::/../../elsewhere"}, None, 8, id="a path outside"),
    ],
)  # fmt: skip
def test_the_control_group_bounds_them(
    tmp_path: Path, files: Mapping[str, str], quota: float | None, threads: int
) -> None:
    found = cores.look(tree(tmp_path, files), range(8))
    assert (found.quota, found.threads) == (quota, threads)


def test_it_says_why() -> None:
    assert str(Cores(20, 14, 6, None)) == "6 threads: 20 processors, 14 cores, the 6 fastest"
    assert str(Cores(8, 4, 4, 1.5)) == "1 thread: 8 processors, 4 cores, 1.5 by the control group"
    assert str(Cores(2, 2, 2, 64.0)) == "2 threads: 2 processors"


def count(script: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


FEWER = (
    "import os, edge_vla.cores as c, edge_vla.threads as t; os.environ.pop('OMP_NUM_THREADS', None); "
    "c.look = lambda: c.Cores(1, 1, 1, None); t.settle()"
)


def test_torch_runs_as_many_before_and_after_its_import() -> None:
    assert count("import edge_vla, torch; print(torch.get_num_threads())") == cores.look().threads
    assert count(f"{FEWER}; import torch; print(torch.get_num_threads())") == 1
    assert count(f"import torch; {FEWER}; print(torch.get_num_threads())") == 1


def test_the_users_number_stands() -> None:
    script = "import edge_vla, torch; print(torch.get_num_threads())"
    assert count(script, OMP_NUM_THREADS="1") == 1
    assert count(f"import torch; torch.set_num_threads(1); {script}") == 1
