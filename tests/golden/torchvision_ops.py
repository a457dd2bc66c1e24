"""Let torchvision's Python parts import beside a torch that its compiled operators were not built for.

Only the generators use this: timm and the image transforms need torchvision to import, not its operators.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, Final

import torch

SIGNATURE: Final = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[Any] = []  # the declarations go when the object goes


def import_torchvision() -> ModuleType:
    """Import torchvision as it is or, where its operators are missing, with the two it looks up declared."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    library.define(f"nms{SIGNATURE}")
    library.define(f"qnms{SIGNATURE}")
    _kept.append(library)
    return importlib.import_module("torchvision")
