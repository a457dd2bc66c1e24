"""The policy that ships is what the training code says it is, and does what it was trained for."""

import numpy as np
import pytest
from PIL import Image

import edge_vla
from benchmarks.demo_policy import evaluate, measure, package
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.learner import demo_spec
from edge_vla.demo import ADAPTER, BASE, statistics_key
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, render, world
from edge_vla.demo.world import EVALUATION_SEEDS, Task, start


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor(package.read(BASE))


def scenes(count: int) -> tuple[list[Image.Image], list[str]]:
    pairs = [start(seed, "pick") for seed in EVALUATION_SEEDS[1000 : 1000 + count]]
    return [render(state, world(1)) for state, _ in pairs], [phrase(task, i) for i, (_, task) in enumerate(pairs)]


def test_it_has_eight_million_weights_at_most() -> None:
    weights = sum(p.numel() for p in package.read(BASE).parameters())
    assert weights + sum(t.numel() for t in package.never_run(demo_spec()).values()) <= 8e6


def test_the_runtime_gives_the_tokens_that_training_measured(actor: Actor) -> None:
    policy = edge_vla.load(BASE, dtype="fp32")
    images, texts = scenes(6)
    batched = actor.tokens(images, texts)
    alone = [policy.act(image, text).tokens for image, text in zip(images, texts, strict=True)]
    assert [tuple(row) for row in batched.tolist()] == alone
    values = policy.act(images[0], texts[0]).values
    np.testing.assert_allclose(values, actor.act_batch(images[:1], texts[:1])[0], rtol=1e-9)


def test_the_runtime_merges_the_adapter_as_training_did() -> None:
    merged, ours = edge_vla.load(BASE, dtype="bf16", adapters=[ADAPTER]), evaluate.load(BASE, [ADAPTER])
    state, task = start(EVALUATION_SEEDS[0], "pick")
    image, text = render(state, world(2)), phrase(task, 0)
    found = np.array(merged.act(image, text, statistics_key(2)).tokens)
    assert np.abs(found - ours.tokens([image], [text])[0]).max() <= 2, "bf16 batched and alone may differ by a bin"


def test_it_uses_picture_and_instruction(actor: Actor) -> None:
    images, texts = scenes(8)
    seen = actor.tokens(images, texts)
    black = actor.tokens([Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE))] * 8, texts)
    assert (seen != black).any(axis=1).all()
    state, _ = start(EVALUATION_SEEDS[1000], "pick")
    blocks = [body.colour for body in state.bodies if body.kind == "block"]
    texts = [phrase(Task(colour), 0) for colour in blocks]
    tokens = actor.tokens([images[0]] * len(texts), texts)
    assert len({tuple(row) for row in tokens.tolist()}) > 1


@pytest.mark.slow
def test_it_succeeds_more_often_than_not(actor: Actor) -> None:
    assert measure.rates(measure.closed_loop(actor, world(1), 24, "pick")).success >= 0.5


@pytest.mark.slow
def test_conditions_and_controls(actor: Actor) -> None:
    """Every condition of world 1: another block's name makes it take that block, a black picture leaves it lost."""
    found = evaluate.evaluate(actor, None, 1, episodes=6, count=8)
    assert list(found.closed_loop) == [one.name for one in evaluate.CONDITIONS if one.world == 1]
    swapped, black = (found.closed_loop[f"pick, {name}"] for name in ("swapped instruction", "black image"))
    assert swapped.wrong_object > 0.5
    assert (black.success, black.mean_steps) == (0, None)
    assert list(found.frames) == ["world 1, trained wording", "world 1, held out wording"]
    assert set(found.frames["world 1, trained wording"].dimensions) == set(measure.NAMES)
