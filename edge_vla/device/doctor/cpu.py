"""The processor: its instructions, the C engine for them, and how many threads may run on how many cores."""

from __future__ import annotations

import re
from typing import Final

from edge_vla import cores
from edge_vla.device.doctor.check import Found, note, warning
from edge_vla.device.doctor.system import System
from edge_vla.processor import ARM, MACHINES
from edge_vla.runtime.cpu.native.targets import SCALAR, TARGETS, VARIABLE, Target, file_name, runnable

# What makes products fast, as Linux names it and as it is shown.
SHOWN: Final = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "fphp": "fp16",
}
PLAN: Final = "edge-vla plan --device {}  # what would do"


def instructions(system: System) -> Found:
    """What products run here, by the instructions that each needs, and which that C knows are not here."""
    found = system.features
    if not found:
        return note(f"{system.machine}, its instructions are not visible")
    arm = _machine(system) == ARM
    shown = " ".join(name for feature, name in SHOWN.items() if feature in found) or "no SIMD"
    if arm and "asimddp" not in found:
        return warning(f"{shown}: without dotprod int8 and int4 products are slow", PLAN.format("orin-64"))
    if not arm and "avx2" not in found:
        return warning(f"{shown}: without AVX2 torch's packed kernels are slow", PLAN.format("rtx3090"))
    target = _targets(system)[0]
    there = file_name(target) in system.libraries or system.compiler is not None
    engine = target != SCALAR and there and not _off(system)
    known = {feature for one in TARGETS if one.machine == _machine(system) for feature in one.features}
    missing = " ".join(name for feature, name in SHOWN.items() if feature in known - found)
    runs = f"the C engine, native@{target.name}" if engine else "torch's kernels"
    return Found(f"{shown}: {runs}" + (f"; not here: {missing}" if missing else ""))


def engine(system: System) -> Found:
    """Where the C engine's library comes from."""
    if _off(system):
        return note("the C engine is off (EDGE_VLA_NATIVE=0)")
    target, *others = _targets(system)
    asked = system.environment.get(VARIABLE)
    if asked and asked not in {one.name for one in (target, *others)}:
        names = ", ".join(one.name for one in (target, *others))
        return warning(f"{VARIABLE}={asked}: this processor or C has not, it has {names}", f"unset {VARIABLE}")
    if file_name(target) in system.libraries:
        return Found(f"installed with the package, for {target.name}")
    if target == SCALAR:
        return note("C has no form for this processor but a plain one, slower than torch's kernels, which run")
    if system.compiler is None:
        return warning(f"no library for {target.name} and no C compiler: torch's kernels run", "sudo apt install gcc")
    version = (system.run((system.compiler, "--version")) or "").splitlines()
    if not version:
        return warning(f"{system.compiler} does not run", "sudo apt install --reinstall gcc")
    name = re.sub(r"\s*\([^)]*\)", "", version[0])
    return Found(f"compiled by {name} into the user's cache, for {target.name}")


def threads(system: System) -> Found:
    """How many run, and which setting makes them wait for one another."""
    policy, wanted = system.environment.get("OMP_WAIT_POLICY", ""), system.environment.get("OMP_NUM_THREADS", "")
    found = cores.look(system.root, system.allowed)
    usable = found.online if found.quota is None else min(found.online, found.quota)
    if policy.upper() == "ACTIVE":
        return warning(
            f"{found}, OMP_WAIT_POLICY={policy}: waiting threads spin and take cores from other work",
            "export OMP_WAIT_POLICY=PASSIVE",
        )
    if wanted.isdigit() and int(wanted) > usable:
        return warning(
            f"{found}, but OMP_NUM_THREADS={wanted}: threads wait for one another",
            f"export OMP_NUM_THREADS={found.threads}",
        )
    if wanted.isdigit() and int(wanted) != found.threads:
        return note(f"{found}, but OMP_NUM_THREADS={wanted}")
    return Found(f"{found}, OMP_WAIT_POLICY={policy or 'unset'}")


def _targets(system: System) -> tuple[Target, ...]:
    """What the C engine has for this processor, the fastest first, plain C last."""
    return runnable(_machine(system), system.features)


def _machine(system: System) -> str:
    return MACHINES.get(system.machine, system.machine)


def _off(system: System) -> bool:
    return system.environment.get("EDGE_VLA_NATIVE") == "0"
