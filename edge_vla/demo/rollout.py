"""Closed-loop episodes: show the picture, say the instruction, do what comes back, judge by state.

Works with anything that answers pictures and instructions with actions; one policy's `act` is wrapped by
`OneByOne`. Episodes run in lockstep so that a batched policy is used as such. Knows nothing of networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.demo.instructions import Wording, phrase
from edge_vla.demo.render import IMAGE_SIDE, World, render
from edge_vla.demo.world import BLOCK_COLOURS, State, Task, start, step, verdict
from edge_vla.errors import UsageError

MAX_STEPS: Final = 40
Trick = Literal["none", "black image", "swapped instruction"]


class Answer(Protocol):
    @property
    def values(self) -> NDArray[np.float64]: ...


class Acts(Protocol):
    """A policy for one robot, as `edge_vla.load` returns it."""

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Answer: ...


class Answers(Protocol):
    """A policy for many robots at once: (n, 7) actions in robot units."""

    def answer(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class OneByOne:
    policy: Acts
    unnorm_key: str | None = None

    def answer(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]:
        pairs = zip(images, instructions, strict=True)
        return np.stack([self.policy.act(image, text, self.unnorm_key).values for image, text in pairs])


@dataclass(frozen=True, slots=True)
class Episode:
    """One row: what was asked, what came of it."""

    seed: int
    world: int
    task: str
    instruction: str
    success: bool
    wrong_object: bool
    steps: int


@dataclass(slots=True)
class _Running:
    seed: int
    state: State
    task: Task
    instruction: str
    steps: int = 0
    outcome: str = "running"


def _swapped(state: State, task: Task) -> Task:
    """The same request for another block of this table."""
    blocks = [body.colour for body in state.bodies if body.kind == "block" and body.colour != task.block]
    return Task(min(blocks, key=BLOCK_COLOURS.index), task.plate)


def _begin(seed: int, kind: Literal["pick", "put"], wording: Wording, trick: Trick) -> _Running:
    state, task = start(seed, kind)
    told = _swapped(state, task) if trick == "swapped instruction" else task
    return _Running(seed, state, task, phrase(told, seed, wording))


def rollout(
    policy: Answers,
    look: World,
    seeds: Sequence[int],
    kind: Literal["pick", "put"],
    wording: Wording = "trained",
    trick: Trick = "none",
    max_steps: int = MAX_STEPS,
    ticks: Callable[[], int] | None = None,
) -> list[Episode]:
    """One episode a seed, in the order of seeds. Success is always judged by the task that the seed gives.

    `ticks()` says how many control periods an answer takes; the arm holds still in all but the last, and each counts
    as a step. Without it the world waits.
    """
    episodes = [_begin(seed, kind, wording, trick) for seed in seeds]
    black = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE))
    while live := [episode for episode in episodes if episode.outcome == "running" and episode.steps < max_steps]:
        images = [black if trick == "black image" else render(episode.state, look) for episode in live]
        actions = policy.answer(images, [episode.instruction for episode in live])
        for episode, action in zip(live, actions, strict=True):
            waited = min(ticks() - 1 if ticks else 0, max_steps - episode.steps)
            episode.steps += waited
            if episode.steps < max_steps:  # else the answer came too late
                episode.state = step(episode.state, action)
                episode.steps += 1
                episode.outcome = verdict(episode.state, episode.task)
    return [
        Episode(
            seed=episode.seed,
            world=look.number,
            task=kind,
            instruction=episode.instruction,
            success=episode.outcome == "success",
            wrong_object=episode.outcome == "wrong object",
            steps=episode.steps,
        )
        for episode in episodes
    ]


def strip(
    policy: Answers, look: World, seed: int, kind: Literal["pick", "put"], frames: int = 6, enlarge: int = 2
) -> tuple[Image.Image, Episode]:
    """An episode as a row of pictures, first and last among them, and its row."""
    if frames < 2:
        raise UsageError(f"a strip of {frames} pictures: at least 2, the first and the last")
    running = _begin(seed, kind, "trained", "none")
    pictures = [render(running.state, look)]
    while running.outcome == "running" and running.steps < MAX_STEPS:
        action = policy.answer([pictures[-1]], [running.instruction])[0]
        running.state = step(running.state, action)
        running.steps += 1
        running.outcome = verdict(running.state, running.task)
        pictures.append(render(running.state, look))
    chosen = [pictures[round(i)] for i in np.linspace(0, len(pictures) - 1, frames)]
    side = IMAGE_SIDE * enlarge
    row = Image.new("RGB", (side * frames + 2 * (frames - 1), side), "white")
    for i, picture in enumerate(chosen):
        row.paste(picture.resize((side, side), Image.Resampling.NEAREST), (i * (side + 2), 0))
    success, wrong = running.outcome == "success", running.outcome == "wrong object"
    return row, Episode(seed, look.number, kind, running.instruction, success, wrong, running.steps)
