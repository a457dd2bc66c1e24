"""Worlds in which a policy can be acted out: name -> episodes. So far the demo's two.

Lock-step: the world waits for each action, which shows numerics alone. Live: the world goes on at the control rate
while the policy thinks, the arm holding still, so that a slow policy runs out of time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

from edge_vla.demo.render import world
from edge_vla.demo.rollout import Acts, OneByOne, rollout
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.errors import UsageError

TABLES: Final[Mapping[str, int]] = {"demo:1": 1, "demo:2": 2}
KINDS: Final = ("pick", "put")
CONTROL_HZ: Final = 5.0


def act_out(
    policy: Acts,
    table: str,
    kind: str,
    first: int,
    count: int,
    delays_ms: Sequence[float] | None = None,
    unnorm_key: str | None = None,
) -> list[dict[str, Any]]:
    """`count` episodes from seed `first` on, one robot at a time; one row each, in the order of seeds."""
    if table not in TABLES or kind not in KINDS:
        raise UsageError(f"no table {table!r} with a task {kind!r}: choose one of {list(TABLES)}, {list(KINDS)}")
    seeds = EVALUATION_SEEDS[first : first + count]
    rows = rollout(
        OneByOne(policy, unnorm_key),
        world(TABLES[table]),
        seeds,
        "pick" if kind == "pick" else "put",
        ticks=ticks(delays_ms) if delays_ms else None,
    )
    return [dataclasses.asdict(row) for row in rows]


def ticks(delays_ms: Sequence[float]) -> Callable[[], int]:
    """Control periods that pass until an action is there, from measured delays in turn."""
    delays: Iterator[float] = cycle(delays_ms)
    return lambda: max(1, math.ceil(next(delays) * CONTROL_HZ / 1e3))
