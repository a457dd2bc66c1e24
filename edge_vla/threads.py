"""How OpenMP's threads wait, asleep, not spinning, and how many there are. Said before torch is imported, so this
imports no more than `cores`.

A thread that spins while it waits takes the core that the other thread's work, or the robot's other programs, need:
on two cores the same decode step took 30 ms, and now and then 250 to 2900. What a user has set stays as it is.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from edge_vla import cores

SETTINGS: Final = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # GNU's OpenMP reads the first, LLVM's both
COUNT: Final = "OMP_NUM_THREADS"

_own: dict[str, str] = {}  # what was set here, not by the user


def settle() -> bool:
    """Make threads wait asleep, one for each core (`cores.Cores.threads`); torch's own count may be lowered to it.

    False if torch is there already: then only the environment can still say how its threads wait.
    """
    torch: Any = sys.modules.get("torch")
    count = None if COUNT in os.environ else cores.look().threads
    if torch is not None:
        if count is not None and torch.get_num_threads() > count:
            torch.set_num_threads(count)
        return os.environ.get("OMP_WAIT_POLICY", "").upper() == SETTINGS["OMP_WAIT_POLICY"]
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if count is not None:
        os.environ[COUNT] = _own[COUNT] = str(count)
    return True


def users_environment() -> dict[str, str]:
    """The environment without the count that was set here: what a user said about it, or nothing."""
    return {name: value for name, value in os.environ.items() if _own.get(name) != value}
