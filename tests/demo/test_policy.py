"""The policy that ships: it loads as any OpenVLA does, looks, listens, and is what the training code says it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edge_vla
from benchmarks.demo_policy import measure, package
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.evaluate import load
from benchmarks.demo_policy.learner import demo_spec
from edge_vla.demo import ADAPTER, BASE, rollout, statistics_key
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, render, world
from edge_vla.demo.world import EVALUATION_SEEDS, MAX_STEPS, Task, start
from edge_vla.openvla.config import PolicyConfig
from edge_vla.runtime import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return edge_vla.load(BASE, dtype="fp32")


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor(package.read(BASE))


def scenes(count: int) -> tuple[list[Image.Image], list[str]]:
    pairs = [start(seed, "pick") for seed in EVALUATION_SEEDS[1000 : 1000 + count]]
    return [render(state, world(1)) for state, _ in pairs], [phrase(task, i) for i, (_, task) in enumerate(pairs)]


def test_it_is_small() -> None:
    size = sum(file.stat().st_size for folder in (BASE, ADAPTER) for file in folder.rglob("*") if file.is_file())
    assert size <= 20e6
    weights = sum(p.numel() for p in package.read(BASE).parameters())
    assert weights + sum(t.numel() for t in package.never_run(demo_spec()).values()) <= 8e6


def test_the_runtime_gives_the_tokens_that_training_measured(policy: Policy, actor: Actor) -> None:
    images, texts = scenes(6)
    batched = actor.tokens(images, texts)
    alone = [policy.act(image, text).tokens for image, text in zip(images, texts, strict=True)]
    assert [tuple(row) for row in batched.tolist()] == alone
    values = policy.act(images[0], texts[0]).values
    np.testing.assert_allclose(values, actor.act_batch(images[:1], texts[:1])[0], rtol=1e-9)


def test_it_looks_and_listens(actor: Actor) -> None:
    images, texts = scenes(8)
    seen = actor.tokens(images, texts)
    black = actor.tokens([Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE))] * 8, texts)
    assert (seen != black).any(axis=1).all()
    state, _ = start(EVALUATION_SEEDS[1000], "pick")
    blocks = [body.colour for body in state.bodies if body.kind == "block"]
    said = [phrase(Task(colour), 0) for colour in blocks]
    answers = actor.tokens([images[0]] * len(said), said)
    assert len({tuple(row) for row in answers.tolist()}) > 1


def test_strange_words_are_answered(policy: Policy) -> None:
    images, _ = scenes(1)
    assert policy.act(images[0], "fetch me the 茶, s'il vous plaît!").values.shape == (7,)


def test_its_statistics_name_its_world() -> None:
    assert set(PolicyConfig.read(BASE).statistics) == {statistics_key(1)}
    written = json.loads((ADAPTER / "dataset_statistics.json").read_text(encoding="utf-8"))
    assert set(written) == {statistics_key(2)}


def test_the_adapter_is_pefts_own_and_merges(actor: Actor) -> None:
    settings = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["peft_type"] == "LORA"
    assert settings["r"] <= 16
    assert settings["base_model_name_or_path"] is None
    merged = edge_vla.load(BASE, dtype="bf16", adapters=[Path(ADAPTER)])
    ours = load(BASE, [ADAPTER])
    state, task = start(EVALUATION_SEEDS[0], "pick")
    image, text = render(state, world(2)), phrase(task, 0)
    found = np.array(merged.act(image, text, statistics_key(2)).tokens)
    assert np.abs(found - ours.tokens([image], [text])[0]).max() <= 2, "bf16 batched and alone may differ by a bin"
    assert torch.isfinite(torch.tensor(merged.act(image, text, statistics_key(2)).values)).all()


def test_closed_loop_runs_on_the_runtime(policy: Policy) -> None:
    rows = rollout.rollout(rollout.OneByOne(policy), world(1), EVALUATION_SEEDS[:1], "pick", max_steps=3)
    assert rows[0].steps == 3 or rows[0].success
    strip, row = rollout.strip(rollout.OneByOne(policy), world(1), EVALUATION_SEEDS[0], "pick")
    assert strip.height == 2 * IMAGE_SIDE
    assert row.steps <= MAX_STEPS


def test_it_succeeds_more_often_than_not(actor: Actor) -> None:
    rows = measure.closed_loop(actor, world(1), 24, "pick")
    assert measure.rates(rows)["success"] >= 0.5
