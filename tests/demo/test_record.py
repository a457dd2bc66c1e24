"""Recorded episodes come back as they were driven."""

from pathlib import Path

import numpy as np

from edge_vla.data import episodes, read_frames
from edge_vla.demo import expert, record, statistics_key
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start


def test_a_recording_is_what_the_expert_saw_and_did(tmp_path: Path) -> None:
    seeds = EVALUATION_SEEDS[:3]
    count = record.record(tmp_path, None, world(1), seeds)
    frames = read_frames(tmp_path)
    assert len(frames) == count
    assert len(set(episodes(frames))) == len(seeds)
    first = frames[0]
    state, task = start(seeds[0], "put")
    assert first.action == tuple(expert.act(state, task))
    assert first.unnorm_key == statistics_key(1)
    np.testing.assert_array_equal(np.asarray(first.open()), np.asarray(render(state, world(1))))
