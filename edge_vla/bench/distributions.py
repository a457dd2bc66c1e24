"""Distributions over the action ids: KL divergence and margins.

Works on logits at the teacher-forced positions, (frames, dims, bins) float32, lowest id first; computes in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.result import Divergence, Flips, Margins
from edge_vla.bench.statistics import Clustered

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Bools = NDArray[np.bool_]

GROUPS: Final = 10


def divergences(reference: Logits, candidate: Logits) -> Floats:
    """(frames, dims): KL(reference || candidate) in nats."""
    return np.stack([kl(reference[:, dim], candidate[:, dim]) for dim in range(reference.shape[1])], axis=1)


def divergence(reference: Logits, candidate: Logits, episodes: Sequence[str]) -> Divergence:
    """KL(reference || candidate) in nats, over all dimensions and by dimension."""
    values = divergences(reference, candidate)
    overall, *by_dimension = Clustered(np.column_stack([values.mean(axis=1), values]), episodes).intervals()
    return Divergence(
        overall=overall,
        by_dimension=by_dimension,
        p99=float(np.percentile(values, 99)),
        max=float(values.max()),
    )


def margins(logits: Logits, best: Ints) -> Floats:
    """(frames, dims): logit at index `best` minus the highest other; negative where another is higher."""
    place = best[..., None]
    own = np.take_along_axis(logits, place, axis=-1)[..., 0].astype(np.float64)
    others = logits.copy()
    np.put_along_axis(others, place, -np.inf, axis=-1)
    margin: Floats = own - others.max(axis=-1)
    return margin


def flips_by_margin(margin: Floats, flipped: Bools, floor: float | None) -> Margins:
    """Flips by the reference's margin, in tenths of equally many positions, and above and below the floor.

    Above it a flip is an error, and not a tie that rounding decides. Without a floor neither is counted.
    """
    order = np.argsort(margin, axis=None, kind="stable")
    sorted_margins, sorted_flips = margin.ravel()[order], flipped.ravel()[order]
    deciles = [
        Flips(
            positions=len(part),
            flips=int(sorted_flips[part].sum()),
            low=float(sorted_margins[part[0]]),
            high=float(sorted_margins[part[-1]]),
        )
        for part in np.array_split(np.arange(margin.size), GROUPS)
        if len(part)
    ]
    high, near = (None, None) if floor is None else (_count(margin > floor, flipped), _count(margin <= floor, flipped))
    return Margins(floor=floor, deciles=deciles, high_margin=high, near_tie=near)


def _count(where: Bools, flipped: Bools) -> Flips:
    return Flips(positions=int(where.sum()), flips=int((where & flipped).sum()))


def kl(reference: Logits, candidate: Logits) -> Floats:
    """(frames, bins) twice -> (frames,) nats; rounding's negative zero is zero."""
    ours, theirs = _log_softmax(reference), _log_softmax(candidate)
    values: Floats = np.maximum(0.0, (np.exp(ours) * (ours - theirs)).sum(axis=-1))
    return values


def _log_softmax(logits: Logits) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
