"""Agreement between two policies' answers to the same frames, as numbers with intervals.

Pure arithmetic on arrays: rows are frames, columns are action dimensions. Metrics A1 to A11 of the result document.
Knows nothing of models, files or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.distributions import divergence, divergences, leads, margins, soft_action_l1
from edge_vla.bench.motion import About, actions, against_recorded, bins, drift, gripper, robot_units
from edge_vla.bench.statistics import Clustered, Interval, cluster_interval, mcnemar, paired_cluster_difference
from edge_vla.openvla import ActionTokens

__all__ = ["About", "Side", "compare", "compare_candidates", "margin_floor"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NOISE = 99  # percentile of what rounding does to a lead


@dataclass(frozen=True)
class Side:
    """One policy's answers. Forced: given the reference's free-running tokens at the positions before."""

    free: Ints  # (frames, dims), token ids, free-running
    forced: Ints  # (frames, dims), best action id
    logits: NDArray[np.float32]  # (frames, dims, bins), at the forced positions, lowest id first
    outside: Floats  # (frames, dims), softmax mass outside the action ids at the forced positions
    would_be: Ints  # (frames, dims), best id of the whole vocabulary at its own free-running hidden states


def compare(
    reference: Side, candidate: Side, about: About, tokens: ActionTokens, floor: float | None = None
) -> dict[str, Any]:
    """AGREEMENT of the result document. `floor`: leads that rounding alone may overturn, from `margin_floor`."""
    names, dims = about.episodes, reference.free.shape[1]
    same_forced, same_free = candidate.forced == reference.forced, candidate.free == reference.free
    distance = np.abs(bins(candidate.free, tokens) - bins(reference.free, tokens))
    forced, free = _shares(same_forced, names), _shares(same_free, names)
    exact = Clustered(np.column_stack([same_free.all(axis=1), (distance == 0).all(axis=1)]), names, trials=1)
    exact_tokens, exact_action = _json(exact.intervals())
    holm = forced.holm_lows(range(1, dims + 1))
    ours, theirs = actions(reference.free, about, tokens), actions(candidate.free, about, tokens)
    lead = leads(reference.logits, reference.logits.argmax(axis=-1))
    return {
        "frames": len(names),
        "episodes": len(set(names)),
        "dims": list(about.dims),
        "teacher_forced": forced.interval().to_json(),
        "teacher_forced_by_dimension": _json(forced.intervals()[1:]),
        "teacher_forced_holm_low": holm,
        "teacher_forced_lowest_holm": {"dimension": about.dims[int(np.argmin(holm))], "low": min(holm)},
        "free_running": free.interval().to_json(),
        "free_running_by_dimension": _json(free.intervals()[1:]),
        "first_divergence": _first_divergence(same_free),
        "exact_tokens": exact_tokens,
        "exact_action": exact_action,
        "bins_apart": {
            **_distances(distance),
            "histogram": [list(pair) for pair in zip(*_counted(distance), strict=True)],
            "by_dimension": [_distances(column) for column in distance.T],
        },
        "robot_units": robot_units(theirs - ours, about),
        "gripper": gripper(ours, theirs, about),
        "kl": divergence(reference.logits, candidate.logits, names),
        "outside_mass": {
            "reference_mean": float(reference.outside.mean()),
            "candidate_mean": float(candidate.outside.mean()),
            "candidate_max": float(candidate.outside.max()),
        },
        "soft_action_l1": soft_action_l1(reference.logits, candidate.logits, tokens),
        "margins": margins(lead, ~same_forced, floor),
        "invalid": {"candidate": _invalid(candidate, tokens), "reference": _invalid(reference, tokens)},
        "against_recorded": against_recorded(reference.free, candidate.free, about, tokens),
        "drift": drift(theirs - ours, about),
        "by_phase": _by_phase(same_forced, (distance == 0).all(axis=1), about),
        "mcnemar_exact_action": None,
    }


def compare_candidates(
    reference: Side, first: Side, second: Side, about: About, tokens: ActionTokens
) -> dict[str, Any]:
    """Which of two candidates is nearer to the reference on the same frames. Differences are second minus first.

    Shares of tokens and of actions, and nats. McNemar's p takes frames as independent, which flatters it where episodes
    are long: the interval does not.
    """
    wanted = bins(reference.free, tokens)
    ours, theirs = ((bins(side.free, tokens) == wanted).all(axis=1) for side in (first, second))
    forced = (first.forced == reference.forced, second.forced == reference.forced)
    nats = (divergences(reference.logits, first.logits), divergences(reference.logits, second.logits))
    only_first, only_second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {
        "teacher_forced_difference": paired_cluster_difference(*forced, about.episodes).to_json(),
        "exact_action_difference": paired_cluster_difference(ours, theirs, about.episodes).to_json(),
        "kl_difference": paired_cluster_difference(*nats, about.episodes).to_json(),
        "mcnemar_exact_action": {
            "both": int((ours & theirs).sum()),
            "only_first": only_first,
            "only_second": only_second,
            "neither": int((~ours & ~theirs).sum()),
            "p": mcnemar(only_first, only_second),
        },
    }


def margin_floor(reference: Side, shaken: Side) -> float:
    """99th percentile of how far a harmless change moves a lead (logits): the reference, and it with rounding shaken.

    A lead is that of the reference's best token, so one that was overturned counts with all of the way it went.
    """
    best = reference.logits.argmax(axis=-1)
    before, after = (leads(side.logits, best) for side in (reference, shaken))
    return float(np.percentile(np.abs(after - before), NOISE))


def _shares(same: Bools, names: Sequence[str]) -> Clustered:
    """Columns: the share over all dimensions, then each dimension."""
    return Clustered(np.column_stack([same.mean(axis=1), same]), names, [same.shape[1]] + [1] * same.shape[1])


def _by_phase(same_forced: Bools, exact: Bools, about: About) -> dict[str, Any]:
    result, labels, names = {}, np.asarray(about.phase), np.asarray(about.episodes)
    for phase in sorted(set(about.phase)):
        rows = labels == phase
        forced = cluster_interval(same_forced[rows].mean(axis=1), names[rows].tolist(), same_forced.shape[1])
        result[phase] = {
            "frames": int(rows.sum()),
            "teacher_forced": forced.to_json(),
            "exact_action": cluster_interval(exact[rows].astype(float), names[rows].tolist(), trials=1).to_json(),
        }
    return result


def _distances(apart: Ints) -> dict[str, Any]:
    """Percentiles are distances that occurred."""
    p50, p95, p99 = (int(np.percentile(apart, at, method="inverted_cdf")) for at in (50, 95, 99))
    return {
        "mean": float(apart.mean()),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": int(apart.max()),
        "within_1": float((apart <= 1).mean()),
        "within_2": float((apart <= 2).mean()),
        "beyond_8": float((apart > 8).mean()),
    }


def _counted(apart: Ints) -> tuple[list[int], list[int]]:
    values, counts = np.unique(apart, return_counts=True)
    return values.tolist(), counts.tolist()


def _first_divergence(same: Bools) -> list[int]:
    """How many frames first differ at each dimension; the last entry counts those that never do."""
    dims = same.shape[1]
    first = np.where(same.all(axis=1), dims, np.argmin(same, axis=1))
    return [int(count) for count in np.bincount(first, minlength=dims + 1)]


def _invalid(side: Side, tokens: ActionTokens) -> float:
    """Share of positions where decoding over the whole vocabulary would not have given an action id."""
    return float(np.mean((side.would_be < tokens.spec.first) | (side.would_be >= tokens.spec.end)))


def _json(intervals: Sequence[Interval]) -> list[dict[str, Any]]:
    return [interval.to_json() for interval in intervals]
