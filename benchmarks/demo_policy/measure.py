"""How good a policy is: free-running answers on fresh frames, and closed-loop episodes.

Every figure is free-running: the policy reads its own tokens. Knows nothing of how a policy was made.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo_policy import samples
from edge_vla.demo import expert, statistics
from edge_vla.demo.instructions import Wording, phrase
from edge_vla.demo.render import World, render
from edge_vla.demo.rollout import Answers, Episode, Trick, rollout
from edge_vla.demo.world import BLOCKS, EVALUATION_SEEDS, FRAME_SEEDS, Task

NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
CLOSE_BINS = 4
MOVING = 0.05  # of the normalised range: below it a dx has no sign worth judging


def _bins(normalised: NDArray[np.float64]) -> NDArray[np.int64]:
    return samples.TOKENS.spec.end - 1 - samples.spoken(normalised)


def frames(
    policy: Answers,
    look: World,
    count: int,
    puts: bool = True,
    wording: Wording = "trained",
    wordings: int | None = None,
    blocks: tuple[int, int] = BLOCKS,
) -> dict[str, float]:
    """Fresh frames, one instruction each: accuracy per dimension, sign of dx, and whether the named thing is meant.

    `wordings` takes only the first so many templates.
    """
    images: list[Image.Image] = []
    texts: list[str] = []
    wanted, rivals = [], []
    for seed in FRAME_SEEDS[:count]:
        rng = np.random.default_rng(seed)
        state, first = samples.moment(rng, look, blocks)
        task = samples.tasks(rng, state, first, 2, puts)[int(rng.integers(2))]
        images.append(render(state, look))
        texts.append(phrase(task, seed if wordings is None else seed % wordings, wording))
        wanted.append(expert.act(state, task))
        others = [body.colour for body in state.bodies if body.kind == "block" and body.colour != task.block]
        rivals.append([expert.act(state, Task(colour)) for colour in others])
    answers = statistics.normalise(policy.answer(images, texts))
    truth = statistics.normalise(np.stack(wanted))
    result: dict[str, float] = {}
    bins = np.abs(_bins(answers) - _bins(truth))
    for i, name in enumerate(NAMES):
        result[f"exact {name}"] = float((bins[:, i] == 0).mean())
        result[f"close {name}"] = float((bins[:, i] <= CLOSE_BINS).mean())
        result[f"error {name}"] = float(np.abs(answers[:, i] - truth[:, i]).mean())
    moving = np.abs(truth[:, 0]) > MOVING
    result["moving"] = float(moving.sum())
    result["dx sign"] = float((np.sign(answers[moving, 0]) == np.sign(truth[moving, 0])).mean())
    named = []
    for answer, right, rest in zip(answers, truth, rivals, strict=True):
        distances = [float(np.abs(answer - statistics.normalise(other))[:6].sum()) for other in rest]
        named.append(float(np.abs(answer - right)[:6].sum()) < min(distances))
    result["named target"] = float(np.mean(named))
    result["grip decided"] = float(((answers[:, 6] < 0.3) == (truth[:, 6] < 0.3)).mean())
    return result


def closed_loop(
    policy: Answers,
    look: World,
    count: int,
    kind: Literal["pick", "put"],
    wording: Wording = "trained",
    trick: Trick = "none",
) -> list[Episode]:
    return rollout(policy, look, EVALUATION_SEEDS[:count], kind, wording, trick)


def rates(episodes: Sequence[Episode]) -> dict[str, float]:
    return {
        "episodes": len(episodes),
        "success": float(np.mean([episode.success for episode in episodes])),
        "wrong object": float(np.mean([episode.wrong_object for episode in episodes])),
        "steps of successes": float(np.mean([e.steps for e in episodes if e.success] or [0])),
    }
