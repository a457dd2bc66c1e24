"""What can go wrong with a run on disk: each is a typed error, and the last good state is kept and continues."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import study
from benchmarks.demo_policy import runs, train
from benchmarks.demo_policy.stages import STAGES, Stage
from edge_vla.errors import CheckpointError, ResourceError, UsageError

SMALL = replace(STAGES["act"], name="small", steps=3, batch=2, prompts=1, warmup=2)

# Training as its command runs it; `{hook}` comes first.
COMMAND = """
import torch
from benchmarks import study
from benchmarks.demo_policy import train
{hook}
study.run(train.main)
"""
# Announces the first bytes of a save and holds them back for a second.
HELD_UP = """
import time
class Slow:
    def __init__(self, file):
        self.file, self.announced = file, False
    def write(self, data):
        if not self.announced:
            self.announced = True
            print("saving", flush=True)
            time.sleep(1.0)
        return self.file.write(data)
    def flush(self):
        self.file.flush()
whole = torch.save
torch.save = lambda state, file: whole(state, Slow(file))
"""
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
"""


def short(run: Path, stage: Stage) -> None:
    learner = train.begin(stage, None)
    train.train(learner, stage, run, compiled=False, workers=0, save_every=1, evaluate_every=0)


def command(run: Path, until: int, hook: str = "") -> subprocess.Popen[str]:
    options = ["--stage", "overfit", "--run", str(run), "--until", str(until), "--threads", "1", "--eager"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(hook=hook), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=study.child_environment(),
        start_new_session=True,  # so that an interrupt reaches the whole group, as a terminal's does
    )


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_save_loses_nothing(tmp_path: Path) -> None:
    process = command(tmp_path, 1, HELD_UP)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    assert not (tmp_path / "state.pt").exists(), "half a state must never have the final name"
    assert (tmp_path / "state.writing").exists()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command continues" in said
    assert runs.load(tmp_path / "state.pt")["step"] == 1
    assert {entry.name for entry in tmp_path.iterdir()} <= {"state.pt", "log.jsonl"}
    _, said = (again := command(tmp_path, 2)).communicate(timeout=120)
    assert again.returncode == 0, said
    assert runs.load(tmp_path / "state.pt")["step"] == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_fills_up_during_a_save(tmp_path: Path) -> None:
    """The system refuses the bytes after the first ten million; a state has more."""
    _, said = (first := command(tmp_path, 1)).communicate(timeout=120)
    assert first.returncode == 0, said
    before = (tmp_path / "state.pt").read_bytes()
    assert len(before) > 10_000_000
    _, said = (process := command(tmp_path, 2, SMALL_DISK)).communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: ")
    assert "the last good state is kept" in said
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not (tmp_path / "state.writing").exists()


def test_a_save_that_fails_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    runs.save(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match="No space left"):
        runs.save(path, {"step": 2})
    monkeypatch.undo()
    assert runs.load(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot save"):
        runs.save(tmp_path / "file" / "state.pt", {"step": 1})
    with pytest.raises(ResourceError, match="cannot write"):
        runs.log(tmp_path / "file" / "log.jsonl", {"step": 1})


def test_another_configuration_is_refused_and_the_state_stands(tmp_path: Path) -> None:
    short(tmp_path, replace(SMALL, steps=1))
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(UsageError, match=r"started with \{'steps': 1\}, got \{'steps': 3\}: continue with the same"):
        short(tmp_path, SMALL)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_another_version_is_refused_and_the_state_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runs, "VERSION", 0)
        short(tmp_path, replace(SMALL, steps=1))
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(CheckpointError, match="version 0, expected 1: start the run again"):
        short(tmp_path, SMALL)
    assert (tmp_path / "state.pt").read_bytes() == before


def changed(whole: bytes) -> bytes:
    """Two hundred bytes in the middle of the weights, which torch reads without a word."""
    return whole[: len(whole) // 2] + bytes(200) + whole[len(whole) // 2 + 200 :]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "first bytes": lambda whole: whole[:100],
    "half": lambda whole: whole[: len(whole) // 2],
    "last byte missing": lambda whole: whole[:-1],
    "bytes changed": changed,
    "something else": lambda whole: b'{"step": 1}',
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_state_is_refused_and_left_as_it_is(how: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    runs.save(path, {"step": 1, "weights": torch.randn(2000, generator=torch.Generator().manual_seed(0))})
    found = DAMAGED[how](path.read_bytes())
    path.write_bytes(found)
    with pytest.raises(CheckpointError, match="not a readable training state"):
        short(tmp_path, SMALL)
    assert path.read_bytes() == found


def test_a_state_that_is_no_state_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="version None"):
        runs.load(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="missing"):
        runs.load(tmp_path / "none.pt")


def test_a_log_is_cut_back_to_the_state_and_loses_a_half_written_row(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in (50, 100, 150):
        runs.log(path, {"step": step, "total": 1.0})
    with path.open("a") as file:
        file.write('{"step": 1')
    runs.trim(path, 100)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [50, 100]
