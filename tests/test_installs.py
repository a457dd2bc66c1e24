"""What a user installs from: bounds, extras, locks and Dockerfiles say the same, and none of them touches torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DOCKERFILES = sorted((PACKAGING / "docker").glob("*.Dockerfile"))
LOCKS = sorted((PACKAGING / "locks").glob("*.txt"))


def name(requirement: str) -> str:
    return re.split(r"[\s\[><=;]", requirement)[0].lower().replace("_", "-")


def instructions(path: Path) -> list[str]:
    """Of the last stage, continued lines joined, without comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    last = max(index for index, line in enumerate(whole) if line.startswith("FROM "))
    return [line for line in whole[last:] if line.strip()]


def where(lines: list[str], pattern: str) -> int:
    (found,) = [index for index, line in enumerate(lines) if re.search(pattern, line)]
    return found


@pytest.mark.parametrize("extra", ["desktop", "jetson6", "jetson7"])
def test_an_extra_for_a_machine_leaves_its_torch_alone(extra: str) -> None:
    names = {name(line) for line in EXTRAS[extra]}
    assert names
    assert not names & {"torch", "torchvision", "torchaudio"}
    assert "triton" not in names, "pip replaces a torch that pins another"


def test_jetpack_6_holds_numpy_below_2() -> None:
    (numpy,) = [line for line in EXTRAS["jetson6"] if name(line) == "numpy"]
    assert numpy.endswith("<2")


def test_torch_is_bounded_below_alone() -> None:
    """An upper bound, or one exact version, would have pip replace the torch that NVIDIA made for a device."""
    (torch,) = [line for line in PROJECT["dependencies"] if name(line) == "torch"]
    assert re.fullmatch(r"torch>=\d+\.\d+", torch)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_layers_are_in_the_order_that_keeps_torch(path: Path) -> None:
    lines = instructions(path)
    torch, locked, wheel = (
        where(lines, pattern)
        for pattern in (r"pip install .*\btorch\b.*--index-url", r"--require-hashes", r"/wheel/\*\.whl")
    )
    assert torch < locked < wheel
    for later in (locked, wheel):
        assert "--no-deps" in lines[later], "what comes after torch resolves nothing, so it can replace nothing"
    user = where(lines, r"^USER ")
    assert wheel < user
    assert lines[user] != "USER root"
    if path.stem == "jetpack-6":
        assert lines[torch].index("numpy==1.") < lines[torch].index("torch>=")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_what_an_image_copies_is_there(path: Path) -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) ", path.read_text(encoding="utf-8"), re.M)
    assert len(copied) >= 2
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_there_is_a_lock_for_each_image() -> None:
    named = {
        re.sub(r".*locks/(\w+)\.txt.*", r"\1", line)
        for path in DOCKERFILES
        for line in instructions(path)
        if "COPY packaging/locks" in line
    }
    assert {path.stem for path in LOCKS} == named == {"cpu", "desktop", "jetson6", "jetson7"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_exact_versions_hashes_and_no_torch(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []
    locked = {name(line) for line in lines}
    assert not {one for one in locked if one.startswith(("torch", "nvidia-cu"))}
    needed = {name(line) for line in PROJECT["dependencies"] if "python_version" not in line}
    if path.stem in EXTRAS:
        needed |= {name(line) for line in EXTRAS[path.stem]}
    # Triton comes with a CUDA torch, which pins it; JetPack 6's brings none.
    assert needed - locked == {"torch"}
    assert ("triton" in locked) is (path.stem == "jetson6")
    if path.stem == "jetson6":
        assert any(line.startswith("numpy==1.") for line in lines)


def test_every_requirement_has_a_lowest_version() -> None:
    """What `make test-lowest` installs; an extra of an extra is followed."""
    extras = sorted(set(EXTRAS) - {"docs"})
    done = subprocess.run(
        [sys.executable, PACKAGING / "lowest.py", *extras], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert "torch==2.6" in lines
    assert "msgpack==1.1" in lines, "serve needs the client's"
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+(;.*)?", line) for line in lines)
