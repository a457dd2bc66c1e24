"""edge-vla: put OpenVLA on a robot. `edge_vla.load(path)` opens an artifact or a checkpoint as a policy."""

from typing import TYPE_CHECKING, Any

from edge_vla.threads import settle
from edge_vla.version import __version__

settle()  # before torch is imported

if TYPE_CHECKING:
    from edge_vla.runtime import Action, Policy, load

__all__ = ["Action", "Policy", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: the command line answers --help without it.
    if name in __all__:
        from edge_vla import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
