"""The wheel that hatch_build.py makes of a checkout: with a compiler, without one, for another machine, editable."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_vla.processor import ARM, X86, machine
from edge_vla.runtime.compiled import compiler
from edge_vla.runtime.cpu.native.targets import HERE, SCALAR, file_name, runnable, written

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = "edge_vla/runtime/cpu/native/compiled/"
CROSS = "aarch64-linux-gnu-gcc"
MACHINES = {X86: 62, ARM: 183}  # e_machine of an ELF file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"),
]
NEEDS_COMPILER = pytest.mark.skipif(compiler() is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, without libraries that an editable install of this one has made."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "edge_vla", copy / "edge_vla", ignore=shutil.ignore_patterns("compiled", "__pycache__"))
    return copy


def build(
    checkout: Path, out: Path, kind: str = "wheel:standard", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    return subprocess.run(
        command, cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def wheel(out: Path) -> tuple[str, dict[str, bytes]]:
    """Its name, and its compiled libraries."""
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if name.startswith(LIBRARIES)]
        return path.name, {name.removeprefix(LIBRARIES): file.read(name) for name in names}


def names(of: str | None = None) -> Sequence[str]:
    return [file_name(target) for target in written(of) if target != SCALAR]


@NEEDS_COMPILER
def test_a_wheel_holds_a_library_for_each_target(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, tmp_path, EDGE_VLA_LIBRARY="required")
    assert done.returncode == 0, done.stderr
    name, libraries = wheel(tmp_path)
    assert sorted(libraries) == sorted(names())
    assert name.endswith(f"-py3-none-linux_{platform.machine()}.whl")


@pytest.mark.skipif(shutil.which(CROSS) is None or machine() != X86, reason="no cross compiler here")
@pytest.mark.skipif(len(written(ARM)) == 1, reason="C has nothing for Arm but its plain form")
def test_a_cross_compiler_makes_a_wheel_for_its_machine(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, tmp_path, CC=CROSS, EDGE_VLA_LIBRARY="required")
    assert done.returncode == 0, done.stderr
    name, libraries = wheel(tmp_path)
    assert sorted(libraries) == sorted(names(ARM))
    assert name.endswith("-py3-none-linux_aarch64.whl")
    assert {int.from_bytes(content[18:20], "little") for content in libraries.values()} == {MACHINES[ARM]}


def test_without_a_compiler_the_wheel_is_for_any_machine(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, tmp_path, PATH="")
    assert done.returncode == 0, done.stderr
    name, libraries = wheel(tmp_path)
    assert (name.endswith("-py3-none-any.whl"), libraries) == (True, {})
    assert "no C compiler (cc, gcc, clang or $CC): the package goes without the C engine" in done.stdout + done.stderr


def test_where_it_is_required_a_wheel_without_c_is_not_made(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, tmp_path, PATH="", EDGE_VLA_LIBRARY="required")
    assert done.returncode != 0
    assert "EDGE_VLA_LIBRARY=required, but no C compiler" in done.stderr
    assert not list(tmp_path.glob("*.whl"))


@NEEDS_COMPILER
@pytest.mark.skipif(runnable() == (SCALAR,), reason="C has nothing for this processor")
@pytest.mark.skipif(importlib.util.find_spec("editables") is None, reason="editables is not installed")
def test_an_editable_install_compiles_for_this_processor(checkout: Path, tmp_path: Path) -> None:
    stale = checkout / LIBRARIES / "network-avx2-of-yesterday.so"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    done = build(checkout, tmp_path, "wheel:editable")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (checkout / LIBRARIES).iterdir()] == [file_name(runnable()[0])]
    assert wheel(tmp_path)[1] == {}


def test_the_c_files_travel_with_the_wheel(checkout: Path, tmp_path: Path) -> None:
    """Their hash names the library, so an installed package without one of them would take its own for stale."""
    build(checkout, tmp_path, PATH="")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as file:
        packed = {Path(name).name for name in file.namelist() if Path(name).suffix in (".c", ".h")}
    assert packed == {path.name for path in HERE.glob("*.[ch]")}
