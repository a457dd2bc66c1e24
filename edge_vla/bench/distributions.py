"""What two policies think before they choose: distributions over the action ids, and how clearly the best one leads.

Works on logits at the forced positions, (frames, dims, bins), lowest id first; float64 inside, a dimension at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.statistics import Clustered
from edge_vla.openvla import ActionTokens

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Bools = NDArray[np.bool_]

GROUPS: Final = 10


def divergences(reference: Logits, candidate: Logits) -> Floats:
    """(frames, dims): KL(reference || candidate) in nats."""
    return np.stack([kl(reference[:, dim], candidate[:, dim]) for dim in range(reference.shape[1])], axis=1)


def divergence(reference: Logits, candidate: Logits, episodes: Sequence[str]) -> dict[str, Any]:
    """A7: KL(reference || candidate) in nats."""
    values = divergences(reference, candidate)
    found = Clustered(np.column_stack([values.mean(axis=1), values]), episodes).intervals()
    return {
        "all": found[0].to_json(),
        "by_dimension": [one.to_json() for one in found[1:]],
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
    }


def soft_action_l1(reference: Logits, candidate: Logits, tokens: ActionTokens) -> dict[str, Any]:
    """A7: distance in bins between the actions expected under each distribution."""
    index = tokens.bins(range(tokens.spec.first, tokens.spec.end)).astype(np.float64)
    apart = [
        float(np.abs((np.exp(_log_softmax(ours)) - np.exp(_log_softmax(theirs))) @ index).mean())
        for ours, theirs in zip(reference.swapaxes(0, 1), candidate.swapaxes(0, 1), strict=True)
    ]
    return {"mean": float(np.mean(apart)), "by_dimension": apart}


def leads(logits: Logits, best: Ints) -> Floats:
    """(frames, dims): how far the logit at index `best` is above every other; negative where another is above it."""
    place = best[..., None]
    own = np.take_along_axis(logits, place, axis=-1)[..., 0].astype(np.float64)
    others = logits.copy()
    np.put_along_axis(others, place, -np.inf, axis=-1)
    lead: Floats = own - others.max(axis=-1)
    return lead


def margins(lead: Floats, flipped: Bools, floor: float | None) -> dict[str, Any]:
    """A8: flips by the reference's lead, in tenths of equally many positions, and above and below the floor.

    Above it a flip is a fault and not a tie that rounding decided. Without a floor neither is told.
    """
    order = np.argsort(lead, axis=None, kind="stable")
    sorted_leads, sorted_flips = lead.ravel()[order], flipped.ravel()[order]
    deciles = [
        {
            "from": float(sorted_leads[part[0]]),
            "to": float(sorted_leads[part[-1]]),
            "positions": len(part),
            "flips": int(sorted_flips[part].sum()),
        }
        for part in np.array_split(np.arange(lead.size), GROUPS)
        if len(part)
    ]
    return {
        "floor": floor,
        "deciles": deciles,
        "high_margin": None if floor is None else _count(lead > floor, flipped),
        "near_tie": None if floor is None else _count(lead <= floor, flipped),
    }


def _count(where: Bools, flipped: Bools) -> dict[str, int]:
    return {"positions": int(where.sum()), "flips": int((where & flipped).sum())}


def kl(reference: Logits, candidate: Logits) -> Floats:
    """(frames, bins) twice -> (frames,) nats; rounding's negative zero is zero."""
    ours, theirs = _log_softmax(reference), _log_softmax(candidate)
    values: Floats = np.maximum(0.0, (np.exp(ours) * (ours - theirs)).sum(axis=-1))
    return values


def _log_softmax(logits: Logits) -> Floats:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    result: Floats = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result
