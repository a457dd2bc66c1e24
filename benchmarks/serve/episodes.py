"""Does the demo policy act the same through the server? `python -m benchmarks.serve.episodes --out FILE`. Ten minutes.

Closed-loop episodes from the same starts, in process and over our WebSocket. Every action's tokens are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import edge_vla
from benchmarks import study
from benchmarks.serve.results import EpisodesResult
from benchmarks.serve.server import demo_artifact, serving
from benchmarks.serve.wire import WebSocketRobot
from benchmarks.study import Target
from edge_vla.demo.render import world
from edge_vla.demo.rollout import Episode, OneByOne, rollout
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.errors import BackendError
from edge_vla.runtime import Policy

EPISODES: Final = 200


@dataclass(frozen=True)
class _Values:
    values: NDArray[np.float64]


@dataclass
class Local:
    """The policy in this process; notes every action's tokens."""

    policy: Policy
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> _Values:
        action = self.policy.act(image, instruction, unnorm_key)
        self.tokens.append(tuple(action.tokens))
        return _Values(action.values)


@dataclass
class Served:
    """The policy behind a server; likewise."""

    robot: WebSocketRobot
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> _Values:  # noqa: ARG002
        found = self.robot.act(np.asarray(image), instruction)
        if found.code is not None:
            raise BackendError(f"the server refused an observation: {found.code}")
        self.tokens.append(found.tokens)
        return _Values(found.action)


def run(actor: Local | Served, seed: int) -> tuple[Episode, list[tuple[int, ...]]]:
    actor.tokens.clear()
    (episode,) = rollout(OneByOne(actor), world(1), [seed], "pick")
    return episode, list(actor.tokens)


def measure(artifact: Path, episodes: int) -> EpisodesResult:
    local, rows = Local(edge_vla.load(artifact)), list[tuple[Any, Any]]()
    with serving(artifact) as server:
        robot = WebSocketRobot(server.addresses["native"], "episodes")
        served = Served(robot)
        for seed in EVALUATION_SEEDS[:episodes]:
            robot.reset()
            rows.append((run(local, seed), run(served, seed)))
        robot.close()
    pairs = [(here[1], there[1]) for here, there in rows]
    differing = [sum(a != b for a, b in zip(here, there, strict=False)) for here, there in pairs]
    lengths = [abs(len(here) - len(there)) for here, there in pairs]
    actions = sum(len(here) for here, _ in pairs)
    wrong = sum(differing) + sum(lengths)
    return EpisodesResult(
        episodes=episodes,
        actions=actions,
        differing_actions=wrong,
        differing_episodes=sum(here != there for here, there in pairs),
        success_in_process=sum(here[0].success for here, _ in rows) / episodes,
        success_served=sum(there[0].success for _, there in rows) / episodes,
        targets=[
            Target("paired episodes", episodes, "at least", EPISODES),
            Target("actions that differ", wrong, "at most", 0),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.episodes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact, given.episodes))


if __name__ == "__main__":
    study.run(main)
