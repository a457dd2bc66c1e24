"""Closed-loop episodes: render the state, give the instruction, apply the action, read the outcome from the state.

Works with anything that turns pictures and instructions into actions. Episodes run side by side, so that a batched
policy gets batches. Knows nothing of networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import IMAGE_SIDE, World, render
from edge_vla.demo.world import MAX_STEPS, Action, State, Task, TaskKind, drive, start, step, verdict


class HasValues(Protocol):
    @property
    def values(self) -> NDArray[np.float64]: ...


class Policy(Protocol):
    """A policy for one robot, as `edge_vla.load` returns it."""

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> HasValues: ...


class BatchPolicy(Protocol):
    """A policy for many robots at once: (n, 7) actions in robot units."""

    def act_batch(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A `Policy` as a `BatchPolicy`."""

    policy: Policy
    unnorm_key: str | None = None

    def act_batch(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]:
        pairs = zip(images, instructions, strict=True)
        return np.stack([self.policy.act(image, text, self.unnorm_key).values for image, text in pairs])


@dataclass(slots=True)
class Episode:
    """One episode while it runs and when it has ended."""

    seed: int
    task: Task
    instruction: str
    state: State
    steps: int = 0
    outcome: str = "running"  # still, after MAX_STEPS: out of time

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def wrong_object(self) -> bool:
        return self.outcome == "wrong object"


Instruct = Callable[[State, Task, int], str]  # of the start, its task and its seed


def rollout(
    policy: BatchPolicy,
    world: World,
    seeds: Sequence[int],
    kind: TaskKind,
    *,
    instruct: Instruct = lambda _, task, seed: phrase(task, seed),
    max_steps: int = MAX_STEPS,
    ticks: Callable[[], int] | None = None,
) -> list[Episode]:
    """One episode a seed, in the order of seeds. The outcome is that of the seed's own task, whatever `instruct` says.

    `ticks()` is how many control periods an action takes; the arm holds still in all but the last, and each counts as
    a step. Without it the world waits.
    """
    starts = [(seed, *start(seed, kind)) for seed in seeds]
    episodes = [Episode(seed, task, instruct(state, task, seed), state) for seed, state, task in starts]
    while live := [episode for episode in episodes if episode.outcome == "running" and episode.steps < max_steps]:
        images = [render(episode.state, world) for episode in live]
        actions = policy.act_batch(images, [episode.instruction for episode in live])
        for episode, action in zip(live, actions, strict=True):
            episode.steps += min(ticks() - 1 if ticks else 0, max_steps - episode.steps)
            if episode.steps < max_steps:  # else the action came too late
                episode.state = step(episode.state, action)
                episode.steps += 1
                episode.outcome = verdict(episode.state, episode.task)
    return episodes


def strip(
    policy: BatchPolicy, world: World, seed: int, kind: TaskKind, frames: int = 6, enlarge: int = 2
) -> tuple[Image.Image, Episode]:
    """An episode as a row of `frames` >= 2 pictures, first and last among them; and the episode."""
    state, task = start(seed, kind)
    episode = Episode(seed, task, phrase(task, seed), state)
    pictures = [render(state, world)]

    def choose(_: State) -> Action:
        action: Action = policy.act_batch(pictures[-1:], [episode.instruction])[0]
        return action

    for _, episode.state in drive(state, task, choose):
        pictures.append(render(episode.state, world))
    episode.steps, episode.outcome = len(pictures) - 1, verdict(episode.state, task)
    width = IMAGE_SIDE * enlarge
    row = Image.new("RGB", (width * frames + 2 * (frames - 1), width), "white")
    for place, index in enumerate(np.linspace(0, len(pictures) - 1, frames)):
        row.paste(pictures[round(index)].resize((width, width), Image.Resampling.NEAREST), (place * (width + 2), 0))
    return row, episode
