"""The demo worlds as closed-loop environments: `--env demo:1` and `--env demo:2`.

Without delays the world waits for each action, which isolates numerical differences. With delays it runs on at the
control rate while the policy computes and the arm holds still, so that a slow policy runs out of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from edge_vla.bench.result import EpisodeRow
from edge_vla.demo.render import world
from edge_vla.demo.rollout import OneByOne, Policy, rollout
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.errors import UsageError
from edge_vla.suggestions import choose


@dataclass(frozen=True, slots=True)
class DemoEnvironment:
    """One world; implements `edge_vla.bench.environments.Environment`."""

    world: int
    kinds: tuple[str, ...] = ("pick", "put")
    control_hz: float = 5.0

    @property
    def name(self) -> str:
        return f"demo world {self.world}"

    def run(
        self,
        policy: Policy,
        kind: str,
        first: int,
        count: int,
        delays_ms: Sequence[float] | None = None,
        unnorm_key: str | None = None,
    ) -> list[EpisodeRow]:
        """`count` episodes of a kind of task from the `first` start on, one after the other, a row each.

        `delays_ms` are measured times from picture to action, used in turn. Raises UsageError for an unknown kind.
        """
        if kind not in self.kinds:
            raise UsageError(f"task {kind!r} in demo world {self.world}: {choose(kind, self.kinds)}")
        episodes = rollout(
            OneByOne(policy, unnorm_key),
            world(self.world),
            EVALUATION_SEEDS[first : first + count],
            "pick" if kind == "pick" else "put",
            ticks=self._ticks(delays_ms) if delays_ms else None,
        )
        return [
            EpisodeRow(
                seed=episode.seed,
                task=kind,
                instruction=episode.instruction,
                success=episode.success,
                wrong_object=episode.wrong_object,
                steps=episode.steps,
            )
            for episode in episodes
        ]

    def _ticks(self, delays_ms: Sequence[float]) -> Callable[[], int]:
        """Control periods until an action is there, for each delay in turn."""
        delays = cycle(delays_ms)
        return lambda: max(1, math.ceil(next(delays) * self.control_hz / 1e3))


world1: Final = DemoEnvironment(1)
world2: Final = DemoEnvironment(2)
