"""edge-vla: put OpenVLA on a robot.

    import edge_vla
    from PIL import Image

    with edge_vla.load("openvla-int4") as policy:           # an artifact; or a checkpoint, as the bf16 reference
        policy.unnorm_keys                                  # ("bridge_orig", ...)
        action = policy.act(Image.open("camera.png"), "put the spoon on the towel", "bridge_orig")
        action.named                                        # {"x": 0.0123, ..., "gripper": 1.0}, in robot units
        action.values, action.tokens, action.margins        # float64; vocabulary ids; logits above the second best
        robot = policy.session()                            # drafts with the last action: same tokens, fewer passes

`load` opens a path, `Policy` acts, `Session` is one robot's memory, `Action` is what comes back. What a caller gets
wrong raises an `EdgeVLAError` (see `edge_vla.errors`). What is done on the command line, `edge-vla --help` lists.
"""

from typing import TYPE_CHECKING, Any

from edge_vla.threads import settle
from edge_vla.version import __version__

settle()  # before torch is imported

if TYPE_CHECKING:
    from edge_vla.errors import EdgeVLAError
    from edge_vla.runtime import Action, Policy, Session, load

__all__ = ["Action", "EdgeVLAError", "Policy", "Session", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Importing the package must not import torch: the command line answers --help without it.
    if name == "EdgeVLAError":
        from edge_vla.errors import EdgeVLAError

        return EdgeVLAError
    if name in __all__:
        from edge_vla import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
