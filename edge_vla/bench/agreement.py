"""Agreement between two policies' predictions on the same frames, as numbers with intervals.

Pure arithmetic on arrays: rows are frames, columns action dimensions. Knows nothing of models, files or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.distributions import divergence, divergences, flips_by_margin, margins
from edge_vla.bench.motion import FrameFacts, actions, against_recorded, bins, drift, gripper, robot_units
from edge_vla.bench.result import (
    AgainstPeer,
    Agreement,
    BinsApart,
    Distances,
    InvalidTokens,
    LowestDimension,
    OutsideMass,
    PhaseAgreement,
)
from edge_vla.bench.statistics import Clustered, cluster_interval, paired_cluster_difference
from edge_vla.openvla import ActionTokens

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NOISE: Final = 99  # percentile of how far rounding noise moves a margin


@dataclass(frozen=True)
class Predictions:
    """What one system predicted. Forced: given the reference's free-running tokens at the positions before."""

    free: Ints  # (frames, dims), token ids, free-running
    forced: Ints  # (frames, dims), best action id
    logits: NDArray[np.float32]  # (frames, dims, bins), at the forced positions, lowest id first
    outside: Floats  # (frames, dims), softmax mass outside the action ids at the forced positions
    unrestricted: Ints  # (frames, dims), best id of the whole vocabulary at its own free-running hidden states


def compare(
    reference: Predictions,
    candidate: Predictions,
    facts: FrameFacts,
    tokens: ActionTokens,
    floor: float | None = None,
) -> Agreement:
    """All of it. `floor`: margins that rounding noise alone may overturn, from `margin_floor`."""
    names, dims = facts.episodes, reference.free.shape[1]
    same_forced, same_free = candidate.forced == reference.forced, candidate.free == reference.free
    distance = np.abs(bins(candidate.free, tokens) - bins(reference.free, tokens))
    same_action = (distance == 0).all(axis=1)
    forced, free = _shares(same_forced, names), _shares(same_free, names)
    exact = Clustered(np.column_stack([same_free.all(axis=1), same_action]), names, trials=1)
    holm = forced.holm_lows(range(1, dims + 1))
    ours, theirs = actions(reference.free, facts, tokens), actions(candidate.free, facts, tokens)
    return Agreement(
        frames=len(names),
        episodes=len(set(names)),
        dims=list(facts.dims),
        teacher_forced=forced.interval(),
        teacher_forced_by_dimension=forced.intervals()[1:],
        teacher_forced_lowest_holm=LowestDimension(dimension=facts.dims[int(np.argmin(holm))], low=min(holm)),
        free_running=free.interval(),
        free_running_by_dimension=free.intervals()[1:],
        exact_tokens=exact.interval(0),
        exact_action=exact.interval(1),
        bins_apart=BinsApart(overall=_distances(distance), by_dimension=[_distances(one) for one in distance.T]),
        robot_units=robot_units(theirs - ours, facts),
        gripper=gripper(ours, theirs, facts),
        kl=divergence(reference.logits, candidate.logits, names),
        outside_mass=OutsideMass(
            reference_mean=float(reference.outside.mean()),
            candidate_mean=float(candidate.outside.mean()),
            candidate_max=float(candidate.outside.max()),
        ),
        margins=flips_by_margin(margins(reference.logits, reference.logits.argmax(axis=-1)), ~same_forced, floor),
        invalid=InvalidTokens(candidate=_invalid(candidate, tokens), reference=_invalid(reference, tokens)),
        against_recorded=against_recorded(reference.free, candidate.free, facts, tokens),
        drift=drift(theirs - ours, facts),
        by_phase=_by_phase(same_forced, same_action, facts),
    )


def compare_candidates(
    reference: Predictions, first: Predictions, second: Predictions, facts: FrameFacts, tokens: ActionTokens
) -> AgainstPeer:
    """Which of two candidates is nearer to the reference on the same frames. Differences are second minus first."""
    wanted = bins(reference.free, tokens)
    ours, theirs = ((bins(one.free, tokens) == wanted).all(axis=1) for one in (first, second))
    forced = (first.forced == reference.forced, second.forced == reference.forced)
    nats = (divergences(reference.logits, first.logits), divergences(reference.logits, second.logits))
    return AgainstPeer(
        teacher_forced_difference=paired_cluster_difference(*forced, facts.episodes),
        exact_action_difference=paired_cluster_difference(ours, theirs, facts.episodes),
        kl_difference=paired_cluster_difference(*nats, facts.episodes),
    )


def margin_floor(reference: Predictions, with_noise: Predictions) -> float:
    """99th percentile of how far rounding noise moves a margin, in logits.

    A margin is that of the reference's best token, so one that was overturned counts with all the way it moved.
    """
    best = reference.logits.argmax(axis=-1)
    before, after = (margins(one.logits, best) for one in (reference, with_noise))
    return float(np.percentile(np.abs(after - before), NOISE))


def _shares(same: Bools, names: Sequence[str]) -> Clustered:
    """Columns: the share over all dimensions, then each dimension."""
    return Clustered(np.column_stack([same.mean(axis=1), same]), names, [same.shape[1]] + [1] * same.shape[1])


def _by_phase(same_forced: Bools, same_action: Bools, facts: FrameFacts) -> dict[str, PhaseAgreement]:
    labels, names = np.asarray(facts.phase), np.asarray(facts.episodes)
    found = {}
    for phase in sorted(set(facts.phase)):
        rows = labels == phase
        episodes = names[rows].tolist()
        found[phase] = PhaseAgreement(
            frames=int(rows.sum()),
            teacher_forced=cluster_interval(same_forced[rows].mean(axis=1), episodes, trials=same_forced.shape[1]),
            exact_action=cluster_interval(same_action[rows].astype(np.float64), episodes, trials=1),
        )
    return found


def _distances(apart: Ints) -> Distances:
    p50, p95, p99 = (int(np.percentile(apart, at, method="inverted_cdf")) for at in (50, 95, 99))
    return Distances(
        mean=float(apart.mean()),
        p50=p50,
        p95=p95,
        p99=p99,
        max=int(apart.max()),
        within_1=float((apart <= 1).mean()),
        within_2=float((apart <= 2).mean()),
        beyond_8=float((apart > 8).mean()),
    )


def _invalid(predictions: Predictions, tokens: ActionTokens) -> float:
    """Share of positions where decoding over the whole vocabulary would not have given an action id."""
    ids = predictions.unrestricted
    return float(np.mean((ids < tokens.spec.first) | (ids >= tokens.spec.end)))
