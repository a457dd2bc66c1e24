"""The policy that ships: it loads as any OpenVLA does, its adapter merges, and it acts in closed loop."""

import json
from pathlib import Path

import numpy as np
import pytest

import edge_vla
from edge_vla.demo import ADAPTER, BASE, rollout, statistics_key
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, render, world
from edge_vla.demo.world import EVALUATION_SEEDS, MAX_STEPS, start
from edge_vla.openvla.config import PolicyConfig
from edge_vla.runtime import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return edge_vla.load(BASE, dtype="fp32")


def test_it_is_small() -> None:
    size = sum(file.stat().st_size for folder in (BASE, ADAPTER) for file in folder.rglob("*") if file.is_file())
    assert size <= 20e6


def test_unknown_words_are_accepted(policy: Policy) -> None:
    state, _ = start(EVALUATION_SEEDS[1000], "pick")
    assert policy.act(render(state, world(1)), "fetch me the 茶, s'il vous plaît!").values.shape == (7,)


def test_its_statistics_name_its_world() -> None:
    assert set(PolicyConfig.read(BASE).statistics) == {statistics_key(1)}
    written = json.loads((ADAPTER / "dataset_statistics.json").read_text(encoding="utf-8"))
    assert set(written) == {statistics_key(2)}


def test_the_adapter_is_pefts_own_and_merges() -> None:
    settings = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["peft_type"] == "LORA"
    assert settings["r"] <= 16
    assert settings["base_model_name_or_path"] is None
    merged = edge_vla.load(BASE, dtype="bf16", adapters=[Path(ADAPTER)])
    state, task = start(EVALUATION_SEEDS[0], "pick")
    action = merged.act(render(state, world(2)), phrase(task, 0), statistics_key(2))
    assert np.isfinite(action.values).all()


def test_closed_loop_runs_on_the_runtime(policy: Policy) -> None:
    robot = rollout.OneByOne(policy)
    (episode,) = rollout.rollout(robot, world(1), EVALUATION_SEEDS[:1], "pick", max_steps=3)
    assert episode.steps == 3 or episode.success
    strip, episode = rollout.strip(robot, world(1), EVALUATION_SEEDS[0], "pick")
    assert strip.height == 2 * IMAGE_SIDE
    assert episode.success == (episode.outcome == "success")
    assert 0 < episode.steps <= MAX_STEPS
