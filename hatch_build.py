"""The wheel's build: compiles the C engine, so that a robot without a compiler has it and nothing is compiled there.

A wheel holds one library for each target of the compiler's machine (`CC` may be a cross compiler); an editable install
holds this machine's alone. Without a compiler the wheel is for any machine and torch's products run, unless
EDGE_VLA_LIBRARY=required.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from edge_vla.processor import MACHINES  # noqa: E402
from edge_vla.runtime.compiled import compiler, off  # noqa: E402  all three without torch, which is not here
from edge_vla.runtime.cpu.native import targets  # noqa: E402

NATIVE: Final = "edge_vla/runtime/cpu/native"
REQUIRED: Final = os.environ.get("EDGE_VLA_LIBRARY") == "required"


def _compiler() -> list[str] | None:
    words = os.environ.get("CC", "").split()
    if words:
        return words if shutil.which(words[0]) else None
    found = compiler()
    return [found] if found else None


class CompiledLibraries(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the libraries into the wheel, or beside the C files where the install is editable."""
        command = _compiler()
        if command is None or off():
            return self._without("no C compiler (cc, gcc, clang or $CC)")
        triple = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
        of = MACHINES.get(triple.partition("-")[0], triple.partition("-")[0])
        editable = version == "editable"
        able = targets.runnable() if editable else targets.written(of)
        wanted = [target for target in able if target != targets.SCALAR][: 1 if editable else None]
        self._kept = tempfile.TemporaryDirectory()
        directory = ROOT / NATIVE / "compiled" if editable else Path(self._kept.name)
        made = self._compile(command, wanted, directory)
        if not made:
            return self._without(f"nothing compiled for {of}")
        if editable:
            for stale in {*directory.glob("*.so")} - set(made):
                stale.unlink()
            return None
        build_data["force_include"] |= {str(path): f"{NATIVE}/compiled/{path.name}" for path in made}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform(of, triple)}"
        return None

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if kept := getattr(self, "_kept", None):
            kept.cleanup()

    def _compile(self, program: list[str], wanted: list[targets.Target], directory: Path) -> list[Path]:
        """The libraries; what an old compiler cannot make is left out, with a line that says so."""
        directory.mkdir(parents=True, exist_ok=True)

        def one(target: targets.Target) -> Path | None:
            path = directory / targets.file_name(target)
            command = [*program, "-o", str(path), *targets.words(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return path
            if REQUIRED:
                raise RuntimeError(f"{target.name}: {' '.join(command)}\n{done.stderr}")
            self.app.display_warning(f"the C engine for {target.name} does not compile: {done.stderr[:300]}")
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [path for path in pool.map(one, wanted) if path is not None]

    def _without(self, why: str) -> None:
        if REQUIRED:
            raise RuntimeError(f"EDGE_VLA_LIBRARY=required, but {why}")
        self.app.display_warning(f"{why}: the package goes without the C engine, torch's products will run")


def _platform(of: str, triple: str) -> str:
    """The wheel's platform tag: this interpreter's, or that of the cross compiler."""
    here = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return here if here.endswith(of) or "linux" not in triple else f"linux_{of}"
