"""The doctor as a whole: what cannot be said, what it sees of this machine, and machines without a sound torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from edge_vla import typed_json
from edge_vla.commands.doctor import WIDTH, shown
from edge_vla.device.doctor import Check, Found, Report, System, Verdict, examine
from edge_vla.device.doctor.check import ARTIFACT, BACKEND, RESOURCE, exit_code
from edge_vla.device.doctor.cpu import instructions
from edge_vla.device.doctor.machine import best_rate, read_rate
from edge_vla.device.doctor.system import Imported, imported
from edge_vla.errors import BackendError
from edge_vla.processor import ARM
from edge_vla.runtime.cpu.native.targets import SCALAR, runnable
from tests.device.recorded import CPU_TORCH, MEMINFO, XEON, recorded

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("verdict", [Verdict.WARNING, Verdict.FAILURE])
@pytest.mark.parametrize("remedy", ["", "  "])
def test_what_is_bad_has_a_remedy(verdict: Verdict, remedy: str) -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        Found("no compiler", verdict, remedy)


def test_a_check_says_something_and_ends_with_a_code_of_ours() -> None:
    with pytest.raises(ValueError, match="says what it found"):
        Found(" ")
    with pytest.raises(ValueError, match="exit code 1"):
        Found("x", Verdict.FAILURE, "y", 1)
    with pytest.raises(ValueError, match="exit code 3 of a warning"):
        Found("x", Verdict.WARNING, "y", BACKEND)


def check(verdict: Verdict, code: int = BACKEND, found: str = "found") -> Check:
    return Check(found, verdict, "do this", code if verdict is Verdict.FAILURE else 0, group="python", name="name")


def test_the_worst_failure_decides_and_warnings_do_not() -> None:
    assert exit_code([]) == exit_code([check(Verdict.WARNING), check(Verdict.NOTE)]) == 0
    assert exit_code([check(Verdict.FAILURE, BACKEND), check(Verdict.FAILURE, RESOURCE)]) == RESOURCE
    assert exit_code([check(Verdict.FAILURE, ARTIFACT), check(Verdict.FAILURE, BACKEND)]) == ARTIFACT


WORDS = some.text(some.characters(codec="ascii", categories=("L", "N", "P", "Zs")), min_size=1).filter(str.strip)


@given(some.lists(some.builds(check, some.sampled_from(Verdict), found=WORDS)), some.booleans())
def test_no_line_is_wider_than_the_page(checks: list[Check], verbose: bool) -> None:
    short = [replace(one, found=" ".join(word[:40] for word in one.found.split())) for one in checks]
    report = Report(schema=1, version="0", artifact=None, checks=tuple(short), exit_code=0)
    assert max(len(line.plain) for line in shown(report, verbose)) <= WIDTH


def test_failures_come_first_with_their_remedy() -> None:
    checks = (check(Verdict.OK), check(Verdict.WARNING, found="slow"), check(Verdict.FAILURE, found="broken"))
    lines = [
        line.plain for line in shown(Report(schema=1, version="0", artifact=None, checks=checks, exit_code=3), False)
    ]
    assert [line.split()[0] for line in lines] == ["failure", "→", "warning", "→", "ok", "3"]


def test_a_good_machine_reads_in_ten_lines(tmp_path: Path) -> None:
    modules = {"torch": CPU_TORCH, "numpy": Imported("2.3.1")}
    files = {"proc/cpuinfo": XEON, "proc/meminfo": MEMINFO.format(20_000_000)}
    report = examine(recorded(tmp_path, files, {"/usr/bin/cc --version": "cc 13.3.0"}, modules))
    assert report.exit_code == 0
    assert not [one for one in report.checks if one.verdict in (Verdict.WARNING, Verdict.FAILURE)]
    assert len(shown(report, False)) <= 10
    assert len(shown(report, True)) >= len(report.checks)


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path: Path) -> None:
    def importing(name: str) -> Imported:
        if name == "onnxruntime":
            raise RuntimeError("unforeseen")
        if name == "numpy":
            raise BackendError("no such thing")
        return CPU_TORCH

    found = {one.name: one for one in examine(recorded(tmp_path, importing=importing)).checks}
    assert found["onnxruntime"].verdict is Verdict.WARNING
    assert "unforeseen" in found["onnxruntime"].found
    assert found["numpy"].verdict is Verdict.FAILURE
    assert found["memory"].verdict is Verdict.NOTE


def test_this_machine() -> None:
    """No recording: torch, numpy and the compiler of the tests' own environment."""
    asked: list[str] = []
    report = examine(System(), on_check=asked.append)
    found = {one.name: one for one in report.checks}
    assert found["torch"].verdict is Verdict.OK
    assert found["numpy"].verdict is Verdict.OK
    assert found["python"].found.startswith(f"Python {sys.version_info[0]}.{sys.version_info[1]}.")
    assert asked[0] == "python"
    assert set(found) <= set(asked)
    assert typed_json.from_json(Report, json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os; os._exit(139)", "ended Python with code 139"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended Python with code -4"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "OSError: libcudart.so.13"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
    ],
)
def test_a_torch_that_ends_its_process_is_a_finding(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = imported("torch")
    assert found.version is None
    assert says in str(found.error)


def test_a_module_that_is_not_there_is_no_error() -> None:
    assert imported("nowhere_to_be_found").missing


def test_where_no_child_starts_the_import_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under an emulator, which cannot start another Python."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(8, "Exec format error")

    monkeypatch.setattr("edge_vla.device.doctor.system.subprocess.run", refused)
    assert imported("numpy").version == np.__version__
    assert imported("torch").facts["cuda"] == (torch.version.cuda or "")
    assert imported("nowhere_to_be_found").missing


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\nfrom edge_vla.cli import main\n"
        "try:\n    main(['doctor', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *([before] if before else [])])}
    command = [sys.executable, "-m", "edge_vla.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("torch.py", "raise ImportError('undefined symbol: cudaGetDriverEntryPointByVersion')", "undefined symbol"),
        ("sitecustomize.py", BLOCKER, "torch is not installed"),
    ],
)
def test_the_command_runs_where_torch_does_not(file: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    done = run(tmp_path, str(tmp_path))
    assert done.returncode == BACKEND
    assert "Traceback" not in done.stderr
    words = " ".join(done.stdout.split())
    assert says in words
    assert "→ pip" in words
    assert "unchecked: torch does not import" in words


def test_reading_a_disk_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(12 << 20))
    assert (read_rate(file) or 0) > 0
    file.write_bytes(b"little")
    assert read_rate(file) is None
    assert read_rate(tmp_path / "nowhere") is None


class Disk:
    """A disk of so many bytes a second, on which other work waits this often; its time passes only while it reads."""

    def __init__(self, rate: float, disturbed: range) -> None:
        self.rate, self.disturbed = rate, disturbed
        self.time, self.calls = 0.0, 0

    def read(self, size: int) -> bytes:
        self.time += size / self.rate + (0.2 if self.calls in self.disturbed else 0.0)
        self.calls += 1
        return bytes(size)


def test_a_busy_machine_makes_no_disk_slow() -> None:
    busy = Disk(400e6, disturbed=range(8))  # two of four reads take half a second for 12 MB
    assert best_rate(busy.read, lambda: busy.time) == pytest.approx(400e6)
    slow = Disk(22e6, disturbed=range(0))
    assert best_rate(slow.read, lambda: slow.time) == pytest.approx(22e6)
    assert slow.time < 3.0
    stuck = Disk(1e6, disturbed=range(0))
    assert best_rate(stuck.read, lambda: stuck.time) == pytest.approx(1e6)
    assert stuck.calls == 1


def test_the_doctor_names_the_target_that_the_engine_takes() -> None:
    said = instructions(System(environment={}, which=lambda name: "/usr/bin/cc")).found
    best = runnable()[0]
    assert ("torch's kernels" if best == SCALAR else f"native@{best.name}") in said


def test_an_emulator_shows_its_hosts_file_of_the_processor(tmp_path: Path) -> None:
    arm = recorded(tmp_path, {"proc/cpuinfo": XEON}, machine=ARM, features=frozenset({"asimd", "asimddp"}))
    assert "native@neon-dotprod" in instructions(arm).found
