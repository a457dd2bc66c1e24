"""Packages that a peer needs, imported only when it is loaded, and the command that installs one that is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
from collections.abc import Mapping
from types import ModuleType
from typing import Final

from edge_vla.errors import BackendError

# Oldest versions tried, and requirements for pip: gptqmodel 7.7 needs a torch with gigabytes of CUDA libraries.
OLDEST: Final[Mapping[str, str]] = {"transformers": "5.0", "bitsandbytes": "0.50", "gptqmodel": "7.6"}
REQUIREMENTS: Final[Mapping[str, str]] = {"gptqmodel": "gptqmodel>=7.6,<7.7"}
REPORTED: Final = ("torch", "transformers", "bitsandbytes", "gptqmodel", "accelerate", "numpy", "tokenizers")


def required(package: str) -> ModuleType:
    """The imported package. Raises BackendError, with the remedy, where it is absent, too old or broken."""
    requirement = REQUIREMENTS.get(package, f"{package}>={OLDEST[package]}")
    command = f"pip install '{requirement}'"
    installed = _version(package)
    if installed is None:
        raise BackendError(f"this peer needs {package}, which this Python does not have: {command}")
    if _numbers(installed) < _numbers(OLDEST[package]):
        raise BackendError(f"this peer needs {package} {OLDEST[package]} or later, got {installed}: {command}")
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, OSError, AttributeError, NameError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise BackendError(
            f"{package} {installed} is installed but does not import ({reason}): see pip check"
        ) from error


def lacking(package: str, python: str | None = None) -> str | None:
    """The command that installs a package which a Python lacks; None where it is there. Nothing is imported."""
    requirement = REQUIREMENTS.get(package, f"{package}>={OLDEST[package]}")
    if python is None:
        return None if _version(package) else f"pip install '{requirement}'"
    script = f"import importlib.metadata as m; m.version({package!r})"
    done = subprocess.run([python, "-c", script], capture_output=True, check=False)
    return f"{python} -m pip install '{requirement}'" if done.returncode else None


def versions() -> dict[str, str]:
    """Installed versions of the packages that a peer's figures depend on, by name."""
    found = {package: _version(package) for package in REPORTED}
    return {package: version for package, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))
