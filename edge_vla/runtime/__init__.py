"""RUN: artifact -> actions. Imports nothing from the build side.

Names are imported when they are used: the wheel's build and the doctor read modules of this package without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_vla.runtime.golden import replay
    from edge_vla.runtime.loading import load
    from edge_vla.runtime.noise import rounding_noise
    from edge_vla.runtime.policy import Policy, Stopwatch
    from edge_vla.runtime.session import Session
    from edge_vla.runtime.types import Action

__all__ = ["Action", "Policy", "Session", "Stopwatch", "load", "replay", "rounding_noise"]

_MODULES = {
    "Action": "types",
    "Policy": "policy",
    "Session": "session",
    "Stopwatch": "policy",
    "load": "loading",
    "replay": "golden",
    "rounding_noise": "noise",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
