"""TensorRT or TensorRT-RTX, imported when asked for: the same code calls both, from 10.3 on.

Never installed by us: which package is right depends on the machine, and the error says which.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import BackendError
from edge_vla.processor import ARM, machine

TENSORRT: Final = "tensorrt"
RTX: Final = "tensorrt_rtx"
OLDEST: Final = (10, 3)  # JetPack 6.2's
TEGRA: Final = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Library:
    """An imported library; `module` is untyped, for neither ships types."""

    name: str
    version: str
    module: Any

    @property
    def rtx(self) -> bool:
        return self.name == RTX

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.rtx else 'TensorRT'} {self.version}"


def library(names: tuple[str, ...] = (TENSORRT, RTX)) -> Library:
    """The first of `names` that imports; BackendError with this platform's remedy where none does."""
    found, broken = None, ""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            broken = broken or ("" if error.name == name else f" ({name} lacks {error.name})")
        except (ImportError, OSError) as error:  # a wheel whose libraries do not load
            broken = broken or f" ({name}: {str(error).splitlines()[0]})"
        else:
            found = Library(name, str(module.__version__), module)
            break
    if found is None:
        raise BackendError(f"{' or '.join(names)} does not import{broken}: {remedy(names)}")
    if not found.rtx and _numbers(found.version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BackendError(f"{found} is too old, {oldest} or later is needed: {remedy(names)}")
    return found


def remedy(names: tuple[str, ...] = (TENSORRT, RTX)) -> str:
    """What installs it on this machine."""
    if TENSORRT not in names:
        return "pip install tensorrt-rtx"
    if TEGRA.exists():
        return "sudo apt install tensorrt python3-libnvinfer, and a venv made with --system-site-packages"
    if machine() == ARM:
        return "install TensorRT for Arm servers (SBSA) from developer.nvidia.com/tensorrt"
    return "pip install tensorrt-cu13 (tensorrt-cu12 beside a torch for CUDA 12), or pip install tensorrt-rtx"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
