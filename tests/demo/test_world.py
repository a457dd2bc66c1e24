"""Laws of the tabletop, its expert and its pictures."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_vla.demo import expert
from edge_vla.demo.render import WORLDS, render, world
from edge_vla.demo.rollout import rollout
from edge_vla.demo.world import (
    EVALUATION_SEEDS,
    HEIGHTS,
    Action,
    State,
    Task,
    TaskKind,
    drive,
    random_gripper,
    start,
    step,
    verdict,
)
from edge_vla.errors import UsageError

SEEDS = st.integers(0, 2**30)
KINDS: st.SearchStrategy[TaskKind] = st.sampled_from(("pick", "put"))


@given(SEEDS, KINDS)
def test_an_episode_is_its_seed(seed: int, kind: TaskKind) -> None:
    assert start(seed, kind) == start(seed, kind)
    state, task = start(seed, kind)
    assert len(state.bodies) >= 4
    assert verdict(state, task) == "running"
    state.find("block", task.block)


@given(SEEDS, KINDS)
def test_nothing_touches_at_the_start(seed: int, kind: TaskKind) -> None:
    state, _ = start(seed, kind)
    for i, a in enumerate(state.bodies):
        for b in state.bodies[:i]:
            assert math.hypot(a.x - b.x, a.y - b.y) > 0.065


@given(SEEDS)
def test_a_held_body_follows_the_gripper_until_it_opens(seed: int) -> None:
    state, task = start(seed, "pick")
    held = next(after for _, after in drive(state, task, partial(expert.act, task=task)) if after.held is not None)
    moved = step(held, np.array([0.01, -0.01, 0.02, 0, 0, 0.1, 0.0]))
    assert moved.held is not None
    body = moved.bodies[moved.held]
    assert (body.colour, body.x, body.y, body.yaw) == (task.block, moved.gripper.x, moved.gripper.y, moved.gripper.yaw)
    assert step(moved, np.array([0, 0, 0, 0, 0, 0, 1.0])).held is None


@given(SEEDS, st.lists(st.floats(-2, 2), min_size=7, max_size=7))
def test_the_gripper_stays_in_its_box_whatever_the_action(seed: int, action: list[float]) -> None:
    state, _ = start(seed, "pick")
    gripper = step(state, np.array(action)).gripper
    assert HEIGHTS[0] <= gripper.z <= HEIGHTS[1]
    assert 0.0 <= gripper.opening <= 1.0
    assert max(abs(gripper.x), abs(gripper.y)) <= 0.18


@given(SEEDS)
def test_a_still_action_moves_nothing(seed: int) -> None:
    state, _ = start(seed, "pick")
    after = step(state, np.array([0, 0, 0, 0, 0, 0, state.gripper.opening]))
    assert after == state


def expert_episode(seed: int, kind: TaskKind) -> tuple[str, int]:
    state, task = start(seed, kind)
    states = [after for _, after in drive(state, task, partial(expert.act, task=task))]
    return verdict(states[-1], task), len(states)


@pytest.mark.parametrize("kind", ["pick", "put"])
def test_the_expert_succeeds_in_ninety_nine_of_a_hundred(kind: TaskKind) -> None:
    outcomes = [expert_episode(seed, kind) for seed in EVALUATION_SEEDS[:400]]
    assert sum(outcome == "success" for outcome, _ in outcomes) >= 396
    assert max(count for _, count in outcomes) <= 30


def test_the_same_state_is_the_same_picture() -> None:
    state, _ = start(EVALUATION_SEEDS[0], "put")
    for look in WORLDS.values():
        first, second = (render(state, look).tobytes() for _ in range(2))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


@settings(max_examples=25)
@given(SEEDS)
def test_a_picture_shows_every_part_of_the_grippers_pose(seed: int) -> None:
    state, _ = start(seed, "pick")
    look = world(1)
    before = np.asarray(render(state, look)).astype(int)
    for field, change in (("x", 0.02), ("y", 0.02), ("z", -0.02), ("roll", 0.2), ("pitch", 0.2), ("yaw", 0.3)):
        gripper = replace(state.gripper, **{field: getattr(state.gripper, field) + change})
        after = np.asarray(render(State(state.bodies, gripper), look)).astype(int)
        assert np.abs(after - before).sum() > 200, field


def test_an_unknown_world_is_refused_by_number() -> None:
    with pytest.raises(UsageError, match="world 3: choose one of"):
        world(3)


@given(SEEDS)
def test_the_wrong_block_or_plate_is_final(seed: int) -> None:
    state, task = start(seed, "put")
    other = next(b.colour for b in state.bodies if b.kind == "block" and b.colour != task.block)
    held = State(state.bodies, random_gripper(np.random.default_rng(seed)), state.find("block", other))
    assert verdict(held, task) == "wrong object"
    assert verdict(held, Task(task.block)) == "wrong object"


class Frozen:
    def act_batch(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> Action:
        return np.zeros((len(images), 7))


def test_a_policy_that_does_nothing_fails_and_harms_nothing() -> None:
    rows = rollout(Frozen(), world(1), EVALUATION_SEEDS[:8], "pick", max_steps=5)
    assert [row.success or row.wrong_object for row in rows] == [False] * 8
    assert {row.steps for row in rows} == {5}
