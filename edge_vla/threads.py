"""How OpenMP's threads wait: asleep, not spinning. Has to be said before torch is imported, so this imports nothing.

A thread that spins while it waits takes the core that the other thread's work, or the robot's other programs, need:
on two cores the same decode step took 30 ms, and now and then 250 to 2900. What a user has set stays as it is.
"""

from __future__ import annotations

import os
import sys
from typing import Final

SETTINGS: Final = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # GNU's OpenMP reads the first, LLVM's both


def settle() -> bool:
    """Make threads wait asleep. False if torch is there already: then only the environment can still say it."""
    if "torch" in sys.modules:
        return os.environ.get("OMP_WAIT_POLICY", "").upper() == SETTINGS["OMP_WAIT_POLICY"]
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return True
