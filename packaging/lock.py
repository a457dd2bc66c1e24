"""Writes `packaging/locks/NAME.txt`: versions and hashes of all that a platform installs besides its torch.

`python packaging/lock.py jetson6`, under the Python of the platform; nothing is installed. torch is left out, and what
it brings along: each platform has its own, from its own index, put in first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lowest

HERE: Final = Path(__file__).parent
WITH_TORCH: Final = ("torch", "triton")  # CUDA's torch pins its triton


@dataclass(frozen=True)
class Platform:
    """`glibc`: the newest minor version of glibc 2 that its wheels may need. `own`: brought by torch, so not locked."""

    python: str
    machine: str
    glibc: int
    extras: tuple[str, ...]
    own: tuple[str, ...] = WITH_TORCH
    also: tuple[str, ...] = ()


PLATFORMS: Final = {
    "cpu": Platform("3.12", "x86_64", 36, ("onnx", "hub", "serve", "act")),
    "desktop": Platform("3.12", "x86_64", 36, ("desktop", "onnx", "hub", "serve", "act")),
    # The torch of JetPack 6's index brings no triton.
    "jetson6": Platform("3.10", "aarch64", 35, ("jetson6", "serve", "act"), ("torch",), ("triton==3.6.0",)),
    "jetson7": Platform("3.12", "aarch64", 39, ("jetson7", "serve", "act")),
}


def requirements(platform: Platform) -> list[str]:
    project = lowest.project()
    extras = project["optional-dependencies"]
    lines = lowest.flat(
        [*project["dependencies"], *(line for extra in platform.extras for line in extras[extra])], extras
    )
    younger = platform.python != "3.10"  # pip reads markers for the Python that it runs under
    kept = [line for line in lines if not (younger and "python_version < '3.11'" in line)]
    kept = [line.replace("; python_version < '3.11'", "") for line in kept]
    return [*(line for line in kept if re.split(r"[\s><=;\[]", line)[0] not in platform.own), *platform.also]


def resolved(platform: Platform) -> Iterator[str]:
    """`name==version --hash=sha256:…`, by name."""
    tags = [f"manylinux_2_{minor}_{platform.machine}" for minor in range(platform.glibc, 16, -1)]
    tags += [f"manylinux2014_{platform.machine}", f"linux_{platform.machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", platform.python]
        command += [word for tag in tags for word in ("--platform", tag)]
        command += ["--target", folder, "--report", str(report), *requirements(platform)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    for one in sorted(found, key=lambda one: one["metadata"]["name"].lower()):
        hashed = one["download_info"]["archive_info"]["hashes"]["sha256"]
        yield f"{one['metadata']['name'].lower()}=={one['metadata']['version']} --hash=sha256:{hashed}"


def main(names: Sequence[str]) -> None:
    for name in names or PLATFORMS:
        if name not in PLATFORMS:
            raise SystemExit(f"no platform {name}: choose of {', '.join(PLATFORMS)}")
        platform = PLATFORMS[name]
        head = f"# {name}: Python {platform.python}, {platform.machine}, without torch. By packaging/lock.py."
        (HERE / "locks" / f"{name}.txt").write_text("\n".join([head, *resolved(platform), ""]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
