"""Action statistics of the expert, in the form of OpenVLA's dataset_statistics.json.

All dimensions are normalised but the gripper's, whose command is a fraction already.
"""

from functools import cache, partial
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from edge_vla.demo import expert
from edge_vla.demo.record import task_kind
from edge_vla.demo.world import TRAINING_SEEDS, drive, start

EPISODES: Final = 600
MASK: Final = (True, True, True, True, True, True, False)


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


@cache
def demonstrations() -> NDArray[np.float64]:
    """Every action (n, 7) of the expert in the first `EPISODES` training episodes, half of them puts."""
    actions = []
    for seed in TRAINING_SEEDS[:EPISODES]:
        state, task = start(seed, task_kind(seed))
        actions += [action for action, _ in drive(state, task, partial(expert.act, task=task))]
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
    """The same for both worlds, which differ in looks only."""
    actions = demonstrations()
    return Statistics(
        action=Normalised(**_moments(actions), mask=list(MASK)),
        proprio=_moments(np.zeros((1, actions.shape[1]))),
        num_transitions=len(actions),
        num_trajectories=EPISODES,
    )


def normalise(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, 7) robot units -> [-1, 1], clipped at the quantiles."""
    action = statistics()["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    scaled = np.where(np.array(MASK), 2 * (actions - low) / (high - low) - 1, actions)
    return np.clip(scaled, -1.0, 1.0)
