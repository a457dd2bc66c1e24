"""The instructions of this processor, by the names that Linux has for them.

Imports the standard library alone: the wheel's build asks too, where nothing else is installed.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

X86, ARM = "x86_64", "aarch64"
MACHINES: Final = {"AMD64": X86, "arm64": ARM}  # other names of the two


def machine() -> str:
    """This one's, as Linux names it."""
    found = platform.machine()
    return MACHINES.get(found, found)


@cache
def features() -> frozenset[str]:
    """Instructions of this processor that the system lets programs use, by Linux's names."""
    if machine() == ARM and (found := _arm_features()):
        return found
    info = Path("/proc/cpuinfo")
    if info.exists():
        return listed_features(info.read_text(encoding="utf-8", errors="replace"), machine())
    return _sysctl_features() if sys.platform == "darwin" else frozenset()


def listed_features(cpuinfo: str, of: str) -> frozenset[str]:
    """What every processor of a /proc/cpuinfo has: cores of one chip may differ. Of another machine's file: none."""
    line = "Features" if of == ARM else "flags"
    lists = [set(text.partition(":")[2].split()) for text in cpuinfo.splitlines() if text.split(":")[0].strip() == line]
    return frozenset(set.intersection(*lists)) if lists else frozenset()


# Bits of AT_HWCAP and AT_HWCAP2, from Linux's asm/hwcap.h: an emulator answers for the processor that it is.
HWCAP: Final = {"fp": 0, "asimd": 1, "fphp": 9, "asimdhp": 10, "asimddp": 20, "sve": 22}
HWCAP2: Final = {"sve2": 1, "i8mm": 13, "bf16": 14}


def hwcap_features(first: int, second: int) -> frozenset[str]:
    """The two auxiliary values of a 64-bit Arm process as names."""
    pairs = ((first, HWCAP), (second, HWCAP2))
    return frozenset(name for value, bits in pairs for name, bit in bits.items() if value >> bit & 1)


def _arm_features() -> frozenset[str]:
    auxiliary = getattr(ctypes.CDLL(None), "getauxval", None)
    if auxiliary is None:
        return frozenset()
    auxiliary.restype, auxiliary.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return hwcap_features(auxiliary(16), auxiliary(26))


# macOS's names of what the targets need.
SYSCTL: Final = {
    "hw.optional.avx2_0": "avx2 bmi1 bmi2 abm popcnt movbe f16c",
    "hw.optional.fma": "fma",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


def _sysctl_features() -> frozenset[str]:
    done = subprocess.run(["sysctl", *SYSCTL], capture_output=True, text=True, check=False)  # absent names are left out
    names = [SYSCTL.get(line.partition(":")[0], "") for line in done.stdout.splitlines() if line.endswith(" 1")]
    return frozenset(" ".join(names).split())
