"""The processor: its instructions, the compiler for our C, and how many threads may run on how many cores."""

from __future__ import annotations

import re
from typing import Final

from edge_vla.device.doctor.check import Found, note, warning
from edge_vla.device.doctor.system import System

# As /proc/cpuinfo has them; the C engine is the fastest where all of NATIVE are there.
X86: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
ARM: Final = ("asimddp", "i8mm", "bf16", "sve", "fphp")
ARM_MACHINES: Final = ("aarch64", "arm64")
ARM_NAMES: Final = {"asimddp": "dotprod", "fphp": "fp16"}
NATIVE: Final = ("avx512bw", "avx512_vnni", "avx512_bf16")


def features(system: System) -> frozenset[str]:
    """As this architecture's kernel lists them; an emulator may show the host's file, which has another line."""
    line = "Features" if system.machine in ARM_MACHINES else "flags"
    match = re.search(rf"^{line}\s*:\s*(.+)$", system.text("proc/cpuinfo") or "", re.M)
    return frozenset(match[1].split()) if match else frozenset()


def instructions(system: System) -> Found:
    """What the kernels of `auto` would be here, by the instructions that each needs."""
    found = features(system)
    if not found:
        return note(f"{system.machine}, its instructions are not visible")
    arm = system.machine in ARM_MACHINES
    shown = " ".join(ARM_NAMES.get(name, name) for name in (ARM if arm else X86) if name in found) or "no SIMD"
    if arm:
        if "asimddp" in found:
            return Found(f"{shown}: torch's kernels")
        return warning(
            f"{shown}: without dotprod int8 and int4 products are slow",
            "edge-vla plan --device orin-64  # what would do",
        )
    if "avx2" not in found:
        return warning(
            f"{shown}: without AVX2 torch's packed kernels are slow", "edge-vla plan --device rtx3090  # what would do"
        )
    if set(NATIVE) <= found and system.compiler and not _native_off(system):
        return Found(f"{shown}: the C engine")
    return Found(f"{shown}: torch's kernels")


def _native_off(system: System) -> bool:
    return system.environment.get("EDGE_VLA_NATIVE") == "0"


def compiler(system: System) -> Found:
    if _native_off(system):
        return note("the C kernels are off (EDGE_VLA_NATIVE=0)")
    if system.compiler is None:
        return warning("no C compiler: the C kernels cannot be made, torch's run", "sudo apt install gcc")
    version = (system.run((system.compiler, "--version")) or "").splitlines()
    if not version:
        return warning(f"{system.compiler} does not run", "sudo apt install --reinstall gcc")
    return Found(re.sub(r"\s*\([^)]*\)", "", version[0]))


def quota(system: System) -> float | None:
    """Cores that the control group may use; None without a limit. Both versions of cgroups, as seen in a container."""
    limit = (system.text("sys/fs/cgroup/cpu.max") or "").split()
    if len(limit) == 2 and limit[0].isdigit() and int(limit[1]) > 0:
        return int(limit[0]) / int(limit[1])
    allowed, period = (system.text(f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    if allowed.isdigit() and period.isdigit() and int(period) > 0:
        return int(allowed) / int(period)
    return None


def threads(system: System) -> Found:
    policy, wanted = system.environment.get("OMP_WAIT_POLICY", ""), system.environment.get("OMP_NUM_THREADS", "")
    limit = quota(system)
    usable = system.cores if limit is None else min(float(system.cores), limit)
    of = f" of {system.cores}" if limit is not None and limit < system.cores else ""
    cores = f"{usable:g}{of} cores"
    if policy.upper() == "ACTIVE":
        return warning(
            f"{cores}, OMP_WAIT_POLICY={policy}: waiting threads spin and take cores from other work",
            "export OMP_WAIT_POLICY=PASSIVE",
        )
    if wanted.isdigit() and int(wanted) > usable:
        return warning(
            f"{cores}, but OMP_NUM_THREADS={wanted}: threads wait for one another",
            f"export OMP_NUM_THREADS={max(1, int(usable))}",
        )
    if not wanted and of:
        return warning(
            f"{cores} by the control group, torch starts {system.cores} threads",
            f"export OMP_NUM_THREADS={max(1, int(usable))}",
        )
    return Found(f"{cores}, OMP_WAIT_POLICY={policy or 'unset'}")
