"""Does it still do the task? Paired episodes of a candidate and its reference, and the test on them.

Both act from the same starts, so the differences on each start are compared and not two rates. The margin and the
number of episodes are fixed before the run. Knows rows of episodes; knows nothing of policies or environments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from edge_vla.bench.messages import System
from edge_vla.bench.result import EpisodeRow, PairedOutcome, Pairs, Rate, Regime, Samples
from edge_vla.bench.statistics import episodes_needed, mcnemar, non_inferiority, paired_difference, wilson
from edge_vla.bench.systems import WorkerProcess
from edge_vla.errors import EdgeVLAError

Rows = Sequence[EpisodeRow]

BLOCK: Final = 20  # episodes a request, for progress
LOCK_STEP: Final = "lock-step"
MIN_DISCORDANCE: Final = 0.05  # share of episodes in which even two runs of one policy may differ
ALL: Final = "all"


def run_all(
    systems: Mapping[str, System],
    environment: str,
    kinds: Sequence[str],
    episodes: int,
    frames: Path,
    delays_ms: Mapping[str, Sequence[float]] | None,
    parallel: int,
    on_progress: Callable[[str], None],
) -> dict[str, list[EpisodeRow] | EdgeVLAError]:
    """Every system's episodes, kind by kind in the order of starts; what stopped a system, in its place.

    `parallel` processes at a time, one for a system and a kind of task, the first systems first: nothing here is timed.
    """
    done = Counter[str]()

    def run(name: str, kind: str) -> list[EpisodeRow] | EdgeVLAError:
        rows, delays = list[EpisodeRow](), None if delays_ms is None else delays_ms[name]
        try:
            with WorkerProcess(systems[name]) as process:
                process.load(frames, 1)
                for first in range(0, episodes, BLOCK):
                    rows += process.episodes(environment, kind, first, min(BLOCK, episodes - first), delays)
                    done[name] += min(BLOCK, episodes - first)
                    on_progress(f"{name}: {done[name]} of {len(kinds) * episodes} episodes")
        except EdgeVLAError as error:
            on_progress(f"{name}: {error}")
            return error
        return rows

    with ThreadPoolExecutor(max_workers=parallel) as pool:
        asked = {name: [pool.submit(run, name, kind) for kind in kinds] for name in systems}
        return {name: _joined([one.result() for one in parts]) for name, parts in asked.items()}


def _joined(parts: Sequence[list[EpisodeRow] | EdgeVLAError]) -> list[EpisodeRow] | EdgeVLAError:
    """The rows of all parts, or the first error."""
    rows = list[EpisodeRow]()
    for part in parts:
        if isinstance(part, EdgeVLAError):
            return part
        rows += part
    return rows


def regime(name: str, reference: Rows, candidate: Rows, margin: float, episodes: Samples) -> Regime:
    """The comparison of paired rows: rates by kind of task, the test on all."""
    return Regime(
        name=name,
        reference=rates(reference),
        candidate=rates(candidate),
        overall=_paired(reference, candidate, margin),
        episodes=episodes,
    )


def rates(rows: Rows) -> dict[str, Rate]:
    """Success by kind of task and over all, with Wilson's 95 % interval."""
    kinds = dict.fromkeys(row.task for row in rows)
    return {**{kind: _rate([row for row in rows if row.task == kind]) for kind in kinds}, ALL: _rate(rows)}


def _paired(reference: Rows, candidate: Rows, margin: float) -> PairedOutcome:
    """`difference` is candidate minus reference."""
    outcomes = [(ours.success, theirs.success) for ours, theirs in zip(reference, candidate, strict=True)]
    pairs = Pairs(
        both=outcomes.count((True, True)),
        only_reference=outcomes.count((True, False)),
        only_candidate=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
    )
    discordance = (pairs.only_reference + pairs.only_candidate) / len(outcomes)
    difference = paired_difference(pairs.both, pairs.only_reference, pairs.only_candidate, pairs.neither, level=0.90)
    return PairedOutcome(
        pairs=pairs,
        difference=difference,
        mcnemar_p=mcnemar(pairs.only_reference, pairs.only_candidate),
        discordance=discordance,
        non_inferior=non_inferiority(difference, margin),
        episodes_needed=episodes_needed(max(discordance, MIN_DISCORDANCE), margin),
    )


def _rate(rows: Rows) -> Rate:
    successes = [row for row in rows if row.success]
    low, high = wilson(len(successes), len(rows))
    return Rate(
        success=len(successes),
        episodes=len(rows),
        low=low,
        high=high,
        wrong_object=sum(row.wrong_object for row in rows),
        steps_mean=sum(row.steps for row in successes) / len(successes) if successes else None,
    )
