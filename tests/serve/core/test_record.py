"""A recording is what robots were shown and did, readable as frames; it is bounded; a crash costs a line at most."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from edge_vla.data import read_frames
from edge_vla.errors import ResourceError
from edge_vla.serve.client import Robot
from edge_vla.serve.messages import Observation, Reply
from edge_vla.serve.record import WAITING, Recorder, RecordOptions
from tests.serve.core.conftest import WORDS, patient, picture, running, wait_until

SOON = 20_000.0


def test_a_day_of_two_robots_is_frames(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "day"
    with (
        running(artifact, patient(record=RecordOptions(folder))) as live,
        Robot(live.ws, "arm-1") as first,
        Robot(live.ws, "arm/2") as second,
    ):
        actions = [first.act(picture(i), WORDS, deadline_ms=SOON) for i in range(3)]
        first.reset()
        actions.append(first.act(picture(3), WORDS, deadline_ms=SOON))
        second.act(picture(4), "open the drawer", deadline_ms=SOON)
    frames = read_frames(folder)
    assert [frame.step for frame in frames] == [0, 1, 2, 0, 0]
    assert len({frame.episode for frame in frames}) == 3
    for i, (frame, action) in enumerate(zip(frames, actions, strict=False)):
        np.testing.assert_array_equal(np.asarray(frame.open()), picture(i))
        assert frame.action == tuple(action.values)
        assert (frame.instruction, frame.unnorm_key) == (WORDS, action.unnorm_key)
    assert not list(folder.glob("*.part"))


def add(recorder: Recorder, number: int, words: str = WORDS) -> None:
    observation = Observation("arm", picture(number), words, time.monotonic_ns())
    recorder.answered(observation, Reply(np.zeros(7), (1,) * 7, (1.0,) * 7, "k", "arm", 1, "r", 1, 1, 1, 1, "a", 1))


def test_it_is_bounded_and_goes_on_where_a_crash_left_it(tmp_path: Path) -> None:
    first = Recorder(RecordOptions(tmp_path, 20_000, redact=True))
    for number in range(10):
        add(first, number)
    first.close()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 20_000 <= size < 30_000
    assert 0 < first.written < 10
    assert first.left_out == 10 - first.written
    assert {frame.instruction[:9] for frame in read_frames(tmp_path)} == {"redacted "}
    with (tmp_path / "frames.jsonl").open("a") as index:
        index.write('{"image": "unfin')
    again = Recorder(RecordOptions(tmp_path, size + 1))
    add(again, 0, "open the drawer")
    again.close()
    assert [frame.instruction for frame in read_frames(tmp_path)][-1] == "open the drawer"


def test_a_disk_that_cannot_keep_up_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> int:
        time.sleep(0.01)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "_write", slow)
    recorder = Recorder(RecordOptions(tmp_path))
    began = time.monotonic()
    for _ in range(4 * WAITING):
        add(recorder, 0)
    assert time.monotonic() - began < 5
    recorder.close()
    wait_until(lambda: recorder.left_out == 4 * WAITING)
    assert recorder.written == 0


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(ResourceError, match="--record"):
        Recorder(RecordOptions(tmp_path / "file"))
