"""How good a policy is: free-running predictions on fresh frames, and closed-loop episodes.

Free-running: the policy reads its own tokens. Knows nothing of how a policy was made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo_policy import samples, statistics
from benchmarks.demo_policy.results import ClosedLoopRates, DimensionAccuracy, FrameAccuracy
from benchmarks.demo_policy.wordings import WORDINGS, Wording
from edge_vla.bench.statistics import wilson
from edge_vla.demo import expert
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import World, render
from edge_vla.demo.rollout import BatchPolicy, Episode, rollout
from edge_vla.demo.world import BLOCK_COLOURS, BLOCKS, EVALUATION_SEEDS, FRAME_SEEDS, State, Task, TaskKind

NAMES: Final = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
CLOSE_BINS: Final = 4
MOVING: Final = 0.05  # of the normalised range: a smaller dx has no meaningful sign
Control = Literal["none", "black image", "swapped instruction"]


@dataclass(frozen=True, slots=True)
class Blindfolded:
    """A policy that gets black pictures."""

    policy: BatchPolicy

    def act_batch(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]:
        return self.policy.act_batch([Image.new("RGB", image.size) for image in images], instructions)


def _bins(normalised: NDArray[np.float64]) -> NDArray[np.int64]:
    return samples.TOKENS.spec.end - 1 - samples.label_tokens(normalised)


def frames(
    policy: BatchPolicy,
    look: World,
    count: int,
    puts: bool = True,
    wording: Wording = "trained",
    wordings: int | None = None,
    blocks: tuple[int, int] = BLOCKS,
) -> FrameAccuracy:
    """Predictions on `count` fresh frames, one instruction each. `wordings` uses only the first so many templates."""
    images: list[Image.Image] = []
    texts: list[str] = []
    wanted, rivals = [], []
    for seed in FRAME_SEEDS[:count]:
        rng = np.random.default_rng(seed)
        state, first = samples.moment(rng, look, blocks)
        task = samples.tasks(rng, state, first, 2, puts)[int(rng.integers(2))]
        images.append(render(state, look))
        texts.append(phrase(task, seed if wordings is None else seed % wordings, WORDINGS[wording]))
        wanted.append(expert.act(state, task))
        others = [body.colour for body in state.bodies if body.kind == "block" and body.colour != task.block]
        rivals.append([expert.act(state, Task(colour)) for colour in others])
    found = statistics.normalise(policy.act_batch(images, texts))
    truth = statistics.normalise(np.stack(wanted))
    moving = np.abs(truth[:, 0]) > MOVING
    return FrameAccuracy(
        dimensions=_by_dimension(found, truth),
        moving_frames=int(moving.sum()),
        dx_sign=float((np.sign(found[moving, 0]) == np.sign(truth[moving, 0])).mean()),
        named_target=float(np.mean([_is_named(*row) for row in zip(found, truth, rivals, strict=True)])),
        gripper_decision=float(((found[:, 6] < 0.3) == (truth[:, 6] < 0.3)).mean()),
    )


def _by_dimension(found: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, DimensionAccuracy]:
    apart, error = np.abs(_bins(found) - _bins(truth)), np.abs(found - truth)
    return {
        name: DimensionAccuracy(
            exact=float((apart[:, i] == 0).mean()),
            within_4_bins=float((apart[:, i] <= CLOSE_BINS).mean()),
            mean_error=float(error[:, i].mean()),
        )
        for i, name in enumerate(NAMES)
    }


def _is_named(found: NDArray[np.float64], truth: NDArray[np.float64], rivals: Sequence[NDArray[np.float64]]) -> bool:
    """Whether an action is nearer to the expert's for the named block than to its action for any other."""
    distances = [float(np.abs(found - statistics.normalise(rival))[:6].sum()) for rival in rivals]
    return float(np.abs(found - truth)[:6].sum()) < min(distances)


def closed_loop(
    policy: BatchPolicy,
    look: World,
    count: int,
    kind: TaskKind,
    wording: Wording = "trained",
    control: Control = "none",
) -> list[Episode]:
    """Episodes on the first `count` evaluation seeds; a control shows black pictures or names another block."""

    def instruct(state: State, task: Task, seed: int) -> str:
        named = _swapped(state, task) if control == "swapped instruction" else task
        return phrase(named, seed, WORDINGS[wording])

    shown = Blindfolded(policy) if control == "black image" else policy
    return rollout(shown, look, EVALUATION_SEEDS[:count], kind, instruct=instruct)


def _swapped(state: State, task: Task) -> Task:
    """The same request for another block of this table."""
    blocks = [body.colour for body in state.bodies if body.kind == "block" and body.colour != task.block]
    return Task(min(blocks, key=BLOCK_COLOURS.index), task.plate)


def rates(episodes: Sequence[Episode]) -> ClosedLoopRates:
    successes = [episode.steps for episode in episodes if episode.success]
    wrong = sum(episode.wrong_object for episode in episodes)
    return ClosedLoopRates(
        episodes=len(episodes),
        success=round(len(successes) / len(episodes), 4),
        success_interval=rounded(wilson(len(successes), len(episodes))),
        wrong_object=round(wrong / len(episodes), 4),
        wrong_object_interval=rounded(wilson(wrong, len(episodes))),
        mean_steps=round(float(np.mean(successes)), 4) if successes else None,
    )


def rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 4), round(interval[1], 4)
