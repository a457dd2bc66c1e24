"""The one face through which every check sees this machine, so that recorded trees and outputs stand in for it.

Commands and imports have a time limit and never raise; a file that cannot be read is None.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Final

from edge_vla import cores, processor
from edge_vla.device import sensors
from edge_vla.device.doctor import probe
from edge_vla.runtime.cpu.native.targets import INSTALLED
from edge_vla.threads import users_environment

RUN_S: Final = 20.0
IMPORT_S: Final = 180.0  # torch takes half a minute where another processor is emulated


@dataclass(frozen=True)
class Imported:
    """What a child process saw of a module; all None where it is not installed. `facts` are named in `probe`."""

    version: str | None = None
    error: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        return self.version is None and self.error is None


@dataclass(frozen=True)
class Interpreter:
    """This Python: version, the ABI tag of its extensions, whether `Python.h` is there, its path."""

    version: tuple[int, int, int]
    abi: str
    headers: bool
    path: str


def _interpreter() -> Interpreter:
    headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    return Interpreter(sys.version_info[:3], str(sysconfig.get_config_var("SOABI") or ""), headers, sys.executable)


def run(command: Sequence[str]) -> str | None:
    """Standard output; None where the command is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_S, check=True, env=environment, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def imported(name: str) -> Imported:
    """A module imported in a child; in this process where no child starts, as under an emulator."""
    script = f"import sys; sys.path[:] = {sys.path!r}; sys.argv = ['probe', {name!r}]; import runpy; "
    script += f"runpy.run_module({probe.__name__!r}, run_name='__main__')"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            check=False,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return Imported(error=f"its import took more than {IMPORT_S:.0f} s")
    except OSError:
        return read_facts(probe.facts(name))
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Imported(error=f"its import ended Python with code {done.returncode}: {said}")
    return read_facts(json.loads(lines[-1]))


def read_facts(facts: Mapping[str, str]) -> Imported:
    rest = {key: value for key, value in facts.items() if key not in ("version", "error")}
    return Imported(facts.get("version"), facts.get("error"), rest)


def installed(name: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> frozenset[str]:
    """Names of the C engine's compiled libraries that came with the package."""
    return frozenset(path.name for path in INSTALLED.glob("*.so"))


@dataclass(frozen=True)
class System:
    """This machine, or a recorded one: give other functions and another root. `allowed`: processors by affinity."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=users_environment)
    run: Callable[[Sequence[str]], str | None] = run
    importing: Callable[[str], Imported] = imported
    installed: Callable[[str], str | None] = installed
    which: Callable[[str], str | None] = shutil.which
    free_disk: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    python: Interpreter = field(default_factory=_interpreter)
    machine: str = field(default_factory=platform.machine)
    allowed: frozenset[int] = field(default_factory=lambda: frozenset(cores.affinity()))
    libraries: frozenset[str] = field(default_factory=_libraries)
    features: frozenset[str] = field(default_factory=processor.features)

    def text(self, path: str) -> str | None:
        """A file below the root, stripped; None if it cannot be read or is empty."""
        try:
            found = (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        return found.strip("\0\n ") or None

    @cached_property
    def torch(self) -> Imported:
        return self.importing("torch")

    @cached_property
    def jetson(self) -> sensors.JetsonState | None:
        return sensors.jetson_state(self.root)

    @cached_property
    def gpus(self) -> list[sensors.GpuState]:
        return sensors.gpu_states(self.run)

    @property
    def has_gpu(self) -> bool:
        """An NVIDIA GPU, whether or not anything can use it."""
        return bool(self.jetson or self.gpus or (self.root / "proc/driver/nvidia/version").exists())

    @property
    def compiler(self) -> str | None:
        """The C compiler as the CPU engine finds it."""
        return next((path for name in ("cc", "gcc", "clang") if (path := self.which(name))), None)
