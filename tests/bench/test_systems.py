"""A system in a process of its own: what it replies, and the error when it breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_vla.bench import messages
from edge_vla.bench.messages import System
from edge_vla.bench.result import CudaMemory
from edge_vla.bench.schedule import Record
from edge_vla.bench.systems import WorkerProcess
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import ArtifactError, BackendError, ResourceError, UsageError
from edge_vla.openvla.evaluation import chosen, prepare
from edge_vla.runtime import load
from tests.conftest import TINY


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frames")
    key = next(iter(load(TINY).config.statistics))
    write_frames(directory, ((Frame(Path(f"{i}.png"), "go", key), synthetic_image(i, 28)) for i in range(4)))
    return directory


@pytest.fixture
def process(tiny_artifacts: Mapping[int, Path], frames: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(System("int4", str(tiny_artifacts[4]))) as running:
        running.load(frames, None)
        yield running


def test_predictions_are_those_of_the_policy(
    process: WorkerProcess, frames: Path, tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    process.predict(tmp_path / "a.npz", None)
    policy = load(tiny_artifacts[4])
    with np.load(tmp_path / "a.npz") as arrays:
        for index in range(4):
            action = policy.act(synthetic_image(index, 28), "go", None)
            assert tuple(arrays["free"][index]) == action.tokens
            np.testing.assert_array_equal(arrays["values"][index], action.values)
        # Forced along its own tokens, the policy says them again.
        own = arrays["logits"].argmax(-1) + policy.config.spec.action.first
        assert (own == arrays["free"]).mean() > 0.9


@pytest.mark.parametrize("peer", [None, "hf-bf16"])
def test_a_system_prepares_its_images(peer: str | None, frames: Path, tmp_path: Path) -> None:
    """Actions and forced passes of ours and of a peer are those of the prepared images."""
    prepared = tmp_path / "prepared"
    key = next(iter(load(TINY).config.statistics))
    images = [prepare(synthetic_image(i, 28), "libero", 28) for i in range(4)]
    write_frames(prepared, ((Frame(Path(f"{i}.png"), "go", key), image) for i, image in enumerate(images)))
    found = []
    for name, directory in (("libero", frames), ("none", prepared), ("none", frames)):
        with WorkerProcess(System("reference", TINY, peer=peer, preprocess=chosen(name))) as process:
            process.load(directory, None)
            process.predict(tmp_path / "a.npz", None)
        with np.load(tmp_path / "a.npz") as arrays:
            found.append(dict(arrays))
    for name, values in found[0].items():
        assert np.array_equal(values, found[1][name]), name
    assert not np.array_equal(found[0]["logits"], found[2]["logits"])


def test_times_and_tokens_come_by_frame(process: WorkerProcess) -> None:
    timed = process.time([0, 1, 5])
    assert [record.index for record in timed.records] == [0, 1, 5]
    assert [index for index, _ in timed.tokens] == [0, 1, 1], "frames are counted round"
    assert timed.tokens[1] == timed.tokens[2]
    assert all(record.finished_ns > record.started_ns for record in timed.records)


def test_a_killed_worker_says_so(process: WorkerProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match="int4 was killed: out of memory"):
        process.time([0])


def test_a_crashed_worker_says_how(process: WorkerProcess) -> None:
    os.kill(process.pid, signal.SIGABRT)
    with pytest.raises(BackendError, match=r"int4 stopped \(signal SIGABRT\)"):
        process.time([0])


def test_the_child_s_error_is_raised_as_what_it_was(tmp_path: Path, frames: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with WorkerProcess(System("broken", str(tmp_path))) as running, pytest.raises(ArtifactError, match="broken: "):
        running.load(frames, None)


def test_an_interpreter_that_is_none(frames: Path) -> None:
    with pytest.raises(UsageError, match="does not start"):
        WorkerProcess(System("peer", TINY, peer="hf-bf16", python="/nowhere/python"))
    with (
        WorkerProcess(System("peer", TINY, peer="hf-bf16", python="/bin/false")) as running,
        pytest.raises(BackendError, match=r"peer stopped \(exit 1\)"),
    ):
        running.load(frames, None)


def test_messages_come_back_as_they_were() -> None:
    system = System("int4", "/artifacts/int4", adapters=("a", "b"), peer="hf-bf16")
    for message in (
        messages.Load(system, "frames", None),
        messages.Time([1, 2], 0.5),
        messages.Timed([Record(0, 1, 2, 3, {"vision": 0.5})], [(0, (5, 6))], CudaMemory(allocated_peak_bytes=7)),
        messages.Failure("UsageError", "no"),
    ):
        assert messages.decode(messages.encode(message)) == message


def test_a_worker_imports_only_what_the_run_side_needs() -> None:
    """It may run in a peer's own Python."""
    script = "import sys, edge_vla.bench.worker\nprint({'msgspec', 'psutil', 'scipy', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
