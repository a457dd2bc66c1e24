"""Action statistics of the expert, in the form OpenVLA writes dataset_statistics.json.

Knows how many episodes make a dataset and which dimensions are normalised: all but the gripper,
whose command is already a fraction.
"""

from functools import cache
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from edge_vla.demo import expert
from edge_vla.demo.world import TRAINING_SEEDS, start, step, verdict

EPISODES: Final = 600
MASK: Final = (True, True, True, True, True, True, False)
MAX_STEPS: Final = 40


class Moments(TypedDict):
    mean: list[float]
    std: list[float]
    max: list[float]
    min: list[float]
    q01: list[float]
    q99: list[float]


class Normalised(Moments):
    mask: list[bool]


class Statistics(TypedDict):
    action: Normalised
    proprio: Moments
    num_transitions: int
    num_trajectories: int


def name(world_number: int) -> str:
    """The statistics key of a world."""
    return f"edge_vla_demo_world{world_number}"


@cache
def demonstrations() -> NDArray[np.float64]:
    """Every action (n, 7) of the expert's first noise-free training episodes, half of them putting."""
    actions = []
    for seed in TRAINING_SEEDS[:EPISODES]:
        state, task = start(seed, "pick" if seed % 2 else "put")
        for _ in range(MAX_STEPS):
            actions.append(expert.act(state, task))
            state = step(state, actions[-1])
            if verdict(state, task) != "running":
                break
    return np.stack(actions)


def _moments(values: NDArray[np.float64]) -> Moments:
    return Moments(
        mean=values.mean(axis=0).tolist(),
        std=values.std(axis=0).tolist(),
        max=values.max(axis=0).tolist(),
        min=values.min(axis=0).tolist(),
        q01=np.quantile(values, 0.01, axis=0).tolist(),
        q99=np.quantile(values, 0.99, axis=0).tolist(),
    )


@cache
def statistics() -> Statistics:
    """The same for both worlds: they differ in looks, not in what the gripper does."""
    actions = demonstrations()
    return Statistics(
        action=Normalised(**_moments(actions), mask=list(MASK)),
        proprio=_moments(np.zeros((1, actions.shape[1]))),
        num_transitions=len(actions),
        num_trajectories=EPISODES,
    )


def normalise(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 7) robot units -> [-1, 1]; what lies outside the quantiles is clipped."""
    action = statistics()["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    scaled = np.where(np.array(MASK), 2 * (actions - low) / (high - low) - 1, actions)
    return np.clip(scaled, -1.0, 1.0)
