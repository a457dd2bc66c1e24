"""How far an artifact's action distribution is from its reference's, frame by frame.

Teacher-forced: both read the recorded action's tokens, so that one early difference does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from benchmarks.formats.results import Share
from edge_vla.bench.distributions import divergences
from edge_vla.calibration.sequences import action_tokens
from edge_vla.data import Frame
from edge_vla.runtime import Policy

RESAMPLES: Final = 2000


def forced_logits(policy: Policy, frames: Sequence[Frame]) -> Tensor:
    """(frames, dims, bins) float32: the action logits, given the recorded action's earlier tokens."""
    found = []
    for frame in frames:
        hidden = policy.forced(frame.open(), frame.instruction, action_tokens(frame, policy.config))
        found.append(policy.network.head.logits(hidden))
    return torch.stack(found)


def divergence(reference: Tensor, other: Tensor) -> NDArray[np.float64]:
    """(frames, dims, bins) logits of both -> (frames,) KL(reference || other) in nats, the mean over dimensions."""
    found: NDArray[np.float64] = divergences(reference.float().numpy(), other.float().numpy()).mean(axis=1)
    return found


def kl_reduction(before: NDArray[np.float64], after: NDArray[np.float64], episodes: Sequence[str]) -> Share:
    """The part of `before`'s mean that is gone in `after`, with its 95 % interval over episodes, paired.

    A single episode is resampled frame by frame; `before` and `after` are (frames,), at least two.
    """
    labels = np.asarray(episodes) if len(set(episodes)) > 1 else np.arange(len(episodes))
    _, which = np.unique(labels, return_inverse=True)
    sums = np.bincount(which, before).astype(np.float64), np.bincount(which, after).astype(np.float64)

    def reduction(first: NDArray[np.float64], second: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        found: NDArray[np.float64] = 1 - second.sum(axis=axis) / first.sum(axis=axis)
        return found

    rng = np.random.default_rng(0)
    drawn = bootstrap(sums, reduction, n_resamples=RESAMPLES, paired=True, method="percentile", rng=rng)
    interval = drawn.confidence_interval
    return Share(float(reduction(*sums)), float(interval.low), float(interval.high))
