"""A side in a process of its own: what it answers, and what is said when it breaks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_vla.bench.systems import Contestant, Station
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import ArtifactError, BackendError, ResourceError, UsageError
from edge_vla.runtime import load
from tests.conftest import TINY


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frames")
    key = next(iter(load(TINY).config.statistics))
    write_frames(directory, ((Frame(Path(f"{i}.png"), "go", key), synthetic_image(i, 28)) for i in range(4)))
    return directory


@pytest.fixture
def station(tiny_artifacts: Mapping[int, Path], frames: Path) -> Iterator[Station]:
    with Station(Contestant("int4", str(tiny_artifacts[4]))) as running:
        running.load(frames, None)
        yield running


def test_answers_are_those_of_the_policy(
    station: Station, frames: Path, tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    station.answer(tmp_path / "a.npz", None)
    policy = load(tiny_artifacts[4])
    with np.load(tmp_path / "a.npz") as answers:
        for index in range(4):
            action = policy.act(synthetic_image(index, 28), "go", None)
            assert tuple(answers["free"][index]) == action.tokens
            np.testing.assert_array_equal(answers["values"][index], action.values)
        # Forced along its own tokens, the policy says them again.
        own = answers["logits"].argmax(-1) + policy.config.spec.action.first
        assert (own == answers["free"]).mean() > 0.9


def test_times_and_tokens_come_by_frame(station: Station) -> None:
    answer = station.time([0, 1, 5])
    assert [record["index"] for record in answer["records"]] == [0, 1, 5]
    assert [index for index, _ in answer["tokens"]] == [0, 1, 1], "frames are asked in turn"
    assert answer["tokens"][1] == answer["tokens"][2]
    assert all(record["finished_ns"] > record["started_ns"] for record in answer["records"])
    assert answer["wall_s"] > 0


def test_a_killed_side_says_so(station: Station) -> None:
    os.kill(station.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match="int4 was killed: out of memory"):
        station.time([0])


def test_a_crashed_side_says_how(station: Station) -> None:
    os.kill(station.pid, signal.SIGABRT)
    with pytest.raises(BackendError, match=r"int4 stopped \(signal SIGABRT\)"):
        station.time([0])


def test_the_child_s_error_is_raised_as_what_it_was(tmp_path: Path, frames: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with Station(Contestant("broken", str(tmp_path))) as running, pytest.raises(ArtifactError, match="broken: "):
        running.load(frames, None)


def test_an_interpreter_that_is_none(frames: Path) -> None:
    with pytest.raises(UsageError, match="does not start"):
        Station(Contestant("peer", TINY, peer="hf-bf16", python="/nowhere/python"))
    with (
        Station(Contestant("peer", TINY, peer="hf-bf16", python="/bin/false")) as running,
        pytest.raises(BackendError, match=r"peer stopped \(exit 1\)"),
    ):
        running.load(frames, None)
