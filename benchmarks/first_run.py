"""What `make demo` costs from nothing: time, download and disk. `python -m benchmarks.first_run --out FILE`. Minutes.

Clones HEAD into an empty directory and runs `make demo` there with empty caches, as on a computer that has Python, make
and a C compiler. Downloads are counted from pip's own log. `python benchmarks/first_run.py --say` prints in a line what
the committed result says, before anything is installed: so nothing but the standard library is imported up here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULT: Final = ROOT / "benchmarks" / "results" / "first-run.json"
UNITS: Final = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
DOWNLOADED: Final = re.compile(r"Downloading \S+\.(?:whl|tar\.gz) \(([\d.]+) (bytes|kB|MB|GB)\)")
FROM_DISK: Final = re.compile(r"Processing (/\S+\.(?:whl|tar\.gz))")
CHOSEN: Final = re.compile(r"torch-\d+(?:\.\d+)*(?:\+\w+)?")


@dataclass(frozen=True, kw_only=True)
class FirstRunResult:
    KIND: ClassVar[str] = "first-run"
    VERSION: ClassVar[int] = 1

    install_s: float
    demo_s: float
    download_bytes: int  # of packages, those included that this machine keeps on its disk
    packages: int
    venv_bytes: int
    demo_bytes: int  # what the demo leaves
    load_before: float  # average number of running processes in the minute before
    torch: str  # the build that pip chose
    verdict: str  # the demo's first line

    def in_words(self) -> str:
        """For people who decide whether to start it."""
        minutes = (self.install_s + self.demo_s) / 60
        disk = (self.venv_bytes + self.demo_bytes) / 1e9
        busy = f" that {self.load_before:.0f} other processes used too" if self.load_before >= 1 else ""
        return (
            f"downloads {self.download_bytes / 1e9:.1f} GB, takes {disk:.1f} GB of disk "
            f"and took {minutes:.0f} minutes on two cores{busy}"
        )


def measure(scratch: Path) -> FirstRunResult:
    """In the empty directory `scratch`. Raises CalledProcessError if the clone, the installation or the demo fails."""
    clone, log, load = scratch / "edge-vla", scratch / "pip.log", os.getloadavg()[0]
    subprocess.run(["git", "clone", "--quiet", "--no-local", str(ROOT), str(clone)], check=True)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "OMP_NUM_THREADS", "EDGE_VLA_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PIP_CACHE_DIR": f"{scratch}/pip", "XDG_CACHE_HOME": f"{scratch}/cache", "PIP_LOG": str(log)}
    seconds, said = list[float](), ""
    for target in (".venv", "demo"):
        began = time.monotonic()
        done = subprocess.run(
            ["make", "--no-print-directory", target], cwd=clone, env=environment, stdout=subprocess.PIPE, check=True
        )
        seconds.append(round(time.monotonic() - began, 1))
        said = done.stdout.decode()
    lines = log.read_text(encoding="utf-8", errors="replace")
    sizes = list(_sizes(lines))
    verdict = next(line for line in said.splitlines() if re.match("Passed|Failed|Undecided", line))
    return FirstRunResult(
        install_s=seconds[0],
        demo_s=seconds[1],
        download_bytes=sum(sizes),
        packages=len(sizes),
        venv_bytes=_size(clone / ".venv"),
        demo_bytes=_size(clone / "demo-out"),
        load_before=round(load, 2),
        torch=next(iter(CHOSEN.findall(lines)), "torch"),
        verdict=verdict,
    )


def _sizes(log: str) -> Iterator[int]:
    """Bytes of each package in pip's log: as it says them, or the file's where it lies on this machine."""
    for number, unit in DOWNLOADED.findall(log):
        yield round(float(number) * UNITS[unit])
    for path in dict.fromkeys(FROM_DISK.findall(log)):
        yield Path(path).stat().st_size


def _size(directory: Path) -> int:
    """Bytes of disk under a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def say() -> str:
    """In a line what the committed result says."""
    if not RESULT.exists():
        return "make demo: what it costs was not measured for this version"
    fields = json.loads(RESULT.read_text(encoding="utf-8"))
    known = {name: fields[name] for name in FirstRunResult.__dataclass_fields__ if name in fields}
    return f"make demo {FirstRunResult(**known).in_words()}; what is installed already is kept"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_run", description=__doc__)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--say", action="store_true", help="print what the committed result says, and end")
    given = parser.parse_args()
    if given.say:
        print(say())  # noqa: T201  (a Makefile's line)
        return
    if given.out is None:
        parser.error("--out FILE is needed")
    with tempfile.TemporaryDirectory(prefix="edge-vla-first-run-") as scratch:
        result = measure(Path(scratch))
    from benchmarks import study

    study.write_result(given.out, result)


if __name__ == "__main__":
    main()
