"""Agreement between two policies' action tokens, as numbers with intervals.

Pure arithmetic on arrays: rows are frames, columns are action dimensions. A frame's neighbours in an episode look
alike, so intervals resample whole episodes. Knows nothing of models, files or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_vla.openvla import ActionTokens

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Side:
    """One policy's answers. `forced[f, d]`: its best token at d given the reference's tokens before d."""

    free: Ints  # (frames, dims)
    forced: Ints  # (frames, dims)
    forced_margins: Floats  # (frames, dims), its lead at each forced token
    would_be: Ints  # (frames, dims), best token of the whole vocabulary at its own hidden states


def compare(
    reference: Side,
    candidate: Side,
    episodes: Sequence[str],
    tokens: ActionTokens,
    floor: float | None = None,
    recorded: Ints | None = None,
) -> dict[str, Any]:
    """Everything the report says about agreement.

    `floor`: leads below it may flip by rounding alone. `recorded`: tokens of the actions that were recorded, where
    every frame has one.
    """
    same_forced = (candidate.forced == reference.forced).astype(float)
    same_free = (candidate.free == reference.free).astype(float)
    ours, theirs = tokens.bins(candidate.free.ravel().tolist()), tokens.bins(reference.free.ravel().tolist())
    distance = np.abs(ours - theirs).reshape(candidate.free.shape)
    flips = candidate.forced != reference.forced
    result: dict[str, Any] = {
        "frames": len(same_free),
        "episodes": len(set(episodes)),
        "teacher_forced": interval(same_forced.mean(axis=1), episodes),
        "teacher_forced_by_dimension": same_forced.mean(axis=0).tolist(),
        "free_running": interval(same_free.mean(axis=1), episodes),
        "free_running_by_dimension": same_free.mean(axis=0).tolist(),
        "exact_tokens": interval(same_free.all(axis=1).astype(float), episodes),
        "exact_action": interval((distance == 0).all(axis=1).astype(float), episodes),
        "first_divergence": _first_divergence(same_free),
        "bins_apart": {
            "mean": float(distance.mean()),
            "p95": float(np.percentile(distance, 95)),
            "p99": float(np.percentile(distance, 99)),
            "max": int(distance.max()),
            "within_1": float((distance <= 1).mean()),
            "within_2": float((distance <= 2).mean()),
        },
        "would_be_invalid": invalid_rate(candidate, tokens),
        "reference_would_be_invalid": invalid_rate(reference, tokens),
    }
    if recorded is not None:
        for name, side in (("candidate", candidate), ("reference", reference)):
            result[f"{name}_against_recorded"] = _accuracy(side.free, recorded, tokens)
    if floor is not None:
        wide = reference.forced_margins > floor
        result["floor_margin"] = floor
        result["high_margin_tokens"] = int(wide.sum())
        result["high_margin_flips"] = int((flips & wide).sum())
        result["near_tie_flips"] = int((flips & ~wide).sum())
    return result


def margin_floor(reference: Side, shaken: Side) -> float:
    """99th percentile of how far a harmless change moves a lead: the reference against itself, rounding shaken."""
    same = reference.forced == shaken.forced
    signed = np.where(same, shaken.forced_margins, -shaken.forced_margins)
    return float(np.percentile(np.abs(signed - reference.forced_margins), 99))


def invalid_rate(side: Side, tokens: ActionTokens) -> float:
    """Share of positions where decoding over the whole vocabulary would not have given an action id."""
    return float(np.mean((side.would_be < tokens.spec.first) | (side.would_be >= tokens.spec.end)))


def interval(values: Floats, episodes: Sequence[str]) -> dict[str, float]:
    """Mean with a 95 % percentile interval from resampling episodes."""
    names, index = np.unique(np.asarray(episodes), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(names))
    counts = np.bincount(index, minlength=len(names))
    drawn = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _accuracy(free: Ints, recorded: Ints, tokens: ActionTokens) -> dict[str, Any]:
    """Free-running tokens against recorded ones, by dimension: equal, and within two bins."""
    apart = np.abs(tokens.bins(free.ravel().tolist()) - tokens.bins(recorded.ravel().tolist())).reshape(free.shape)
    return {
        "equal_by_dimension": (apart == 0).mean(axis=0).tolist(),
        "within_2_by_dimension": (apart <= 2).mean(axis=0).tolist(),
        "mean_bins_apart_by_dimension": apart.mean(axis=0).tolist(),
    }


def _first_divergence(same: Floats) -> list[int]:
    """How many frames first differ at each dimension; the last entry counts those that never do."""
    dims = same.shape[1]
    first = np.where(same.all(axis=1), dims, np.argmin(same, axis=1))
    return [int(count) for count in np.bincount(first, minlength=dims + 1)]
