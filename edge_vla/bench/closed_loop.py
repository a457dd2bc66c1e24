"""Does it still do the task? Paired episodes of a candidate and its reference, and the verdict on them.

Both act from the same starts, so that what is compared is the difference on each start and not two rates. The margin
and the number of episodes are fixed before the run. Knows rows of episodes; knows nothing of policies or worlds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_vla.bench.environments import CONTROL_HZ, KINDS, TABLES
from edge_vla.bench.gates import LEAST_DISCORDANCE
from edge_vla.bench.statistics import episodes_needed, mcnemar, non_inferiority, paired_difference, wilson
from edge_vla.bench.systems import Contestant, Station
from edge_vla.errors import EdgeVLAError, UsageError

Rows = Sequence[Mapping[str, Any]]

BLOCK = 20  # episodes a call, for progress
LOCK_STEP = "lock-step"
LIVE = f"live {CONTROL_HZ:g} Hz"


@dataclass(frozen=True)
class Trial:
    """What was declared before the run."""

    table: str
    episodes: int  # of each kind of task
    margin: float = 0.03
    live: bool = False

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise UsageError(f"--table {self.table}: choose one of {list(TABLES)}")
        if self.episodes < 1 or not 0 < self.margin < 1:
            raise UsageError(f"--episodes {self.episodes}, --margin {self.margin:g}: at least one, and between 0 and 1")


def act_all(
    sides: Mapping[str, Contestant],
    trial: Trial,
    frames: Path,
    delays_ms: Mapping[str, Sequence[float]] | None,
    tell: Callable[[str], None],
) -> dict[str, list[dict[str, Any]] | EdgeVLAError]:
    """Every side's episodes, as many sides at a time as there are cores: nothing here is timed.

    A side that breaks is an error in its place.
    """

    def one(name: str) -> list[dict[str, Any]] | EdgeVLAError:
        try:
            with Station(sides[name]) as station:
                station.load(frames, 1)
                return acted(station, trial, None if delays_ms is None else delays_ms[name], tell)
        except EdgeVLAError as error:
            tell(f"{name}: {error}")
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(sides, pool.map(one, sides), strict=True))


def acted(
    station: Station, trial: Trial, delays_ms: Sequence[float] | None, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All episodes of one side, task by task, in the order of seeds."""
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for first in range(0, trial.episodes, BLOCK):
            count = min(BLOCK, trial.episodes - first)
            delays = list(delays_ms) if delays_ms is not None else None
            rows += station.episodes(trial.table, kind, first, count, delays)["rows"]
            tell(f"{station.contestant.name}: {len(rows)} of {len(KINDS) * trial.episodes} episodes")
    return rows


def rates(rows: Rows) -> dict[str, Any]:
    """Success by kind of task and over all, with Wilson's 95 % interval."""
    return {kind: _rate([row for row in rows if kind in ("all", row["task"])]) for kind in (*KINDS, "all")}


def verdict(reference: Rows, candidate: Rows, margin: float) -> dict[str, Any]:
    """The comparison of paired rows, pooled and by kind of task."""
    whole = _paired(reference, candidate, margin)
    by_kind = {}
    for kind in KINDS:
        these = [index for index, row in enumerate(reference) if row["task"] == kind]
        by_kind[kind] = _paired([reference[i] for i in these], [candidate[i] for i in these], margin)
    return {"reference": rates(reference), "candidate": rates(candidate), **whole, "by_kind": by_kind}


def _paired(reference: Rows, candidate: Rows, margin: float) -> dict[str, Any]:
    """`difference` is candidate minus reference; its ends are the 90 % interval that a one-sided 5 % test reads."""
    done = [(bool(ours["success"]), bool(theirs["success"])) for ours, theirs in zip(reference, candidate, strict=True)]
    counts = {
        "both": done.count((True, True)),
        "only_reference": done.count((True, False)),
        "only_candidate": done.count((False, True)),
        "neither": done.count((False, False)),
    }
    discordance = (counts["only_reference"] + counts["only_candidate"]) / len(done)
    difference = paired_difference(**counts, level=0.90)
    return {
        "pairs": counts,
        "difference": difference.to_json(),
        "mcnemar_p": mcnemar(counts["only_reference"], counts["only_candidate"]),
        "discordance": discordance,
        "non_inferior": non_inferiority(difference, margin),
        "episodes_needed": episodes_needed(max(discordance, LEAST_DISCORDANCE), margin),
    }


def _rate(rows: Rows) -> dict[str, Any]:
    done = [row for row in rows if row["success"]]
    low, high = wilson(len(done), len(rows))
    return {
        "success": len(done),
        "episodes": len(rows),
        "low": low,
        "high": high,
        "wrong_object": sum(bool(row["wrong_object"]) for row in rows),
        "steps_mean": sum(row["steps"] for row in done) / len(done) if done else None,
    }
