"""What only a Jetson has: its release, its power mode, its clocks. None elsewhere."""

from __future__ import annotations

import re
from typing import Final

from edge_vla.device import sensors
from edge_vla.device.doctor.check import Found, failure, note, warning
from edge_vla.device.doctor.jetpack import jetpack
from edge_vla.device.doctor.system import System

OLDEST: Final = "6"


def release(system: System) -> Found | None:
    if system.jetson is None:
        return None
    l4t = system.jetson.l4t
    known = jetpack(l4t)
    remedy = "sdkmanager  # on a PC: flash JetPack 6.2 or 7.2, https://developer.nvidia.com/embedded/jetpack"
    if known is None:
        return failure(f"L4T {l4t} is older than JetPack 5", remedy)
    found = f"JetPack {known.name} (L4T {l4t}, CUDA {known.cuda})"
    if known.name < OLDEST:
        return failure(f"{found} has Python {known.python[0]}.{known.python[1]}, 3.10 is needed", remedy)
    return Found(found)


def power_mode(system: System) -> Found | None:
    """The mode with every core and clock is called MAXN, or MAXN_SUPER; its number differs by module."""
    if system.jetson is None:
        return None
    mode = system.jetson.power_mode or _asked(system)
    if mode is None:
        return warning("the power mode is unknown", "sudo nvpmodel -q")
    if "MAXN" in mode:
        return Found(f"power mode {mode}")
    modes = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", system.text("etc/nvpmodel.conf") or "")
    best = next((number for number, name in reversed(modes) if "MAXN" in name), "0")
    return warning(f"power mode {mode} holds clocks below MAXN", f"sudo nvpmodel -m {best}")


def _asked(system: System) -> str | None:
    match = re.search(r"NV Power Mode:\s*(\S+)", system.run(("nvpmodel", "-q")) or "")
    return match[1] if match else None


def clocks(system: System) -> Found | None:
    """On any machine: whether clocks hold still while an action is computed."""
    if system.jetson is not None:
        locked = system.jetson.clocks_locked
        if locked is None:
            return note("whether clocks are locked is not visible")
        if locked:
            return Found("clocks locked")
        return warning("clocks follow the load: the first actions after a pause are late", "sudo jetson_clocks")
    governor = sensors.cpu_state(system.root).governor
    if governor is None:
        return note("the CPU's clock is not visible (a virtual machine?)")
    if "powersave" in governor and "intel_pstate" not in (_driver(system) or ""):
        return warning(f"CPU governor {governor} holds the lowest clock", "sudo cpupower frequency-set -g performance")
    return Found(f"CPU governor {governor}")


def _driver(system: System) -> str | None:
    """intel_pstate's powersave is no slow mode: it follows the load."""
    return system.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver")
