"""Normalisation statistics: which data set an action belongs to, and the way back to robot units.

Reads `norm_stats` of config.json or a `dataset_statistics.json`, which replaces it wholesale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import CheckpointError, UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ActionStatistics:
    """First and 99th percentile of each action dimension; where the mask is false a value is left as it is."""

    q01: Floats
    q99: Floats
    mask: NDArray[np.bool_]

    @property
    def dims(self) -> int:
        return len(self.q01)

    def unnormalise(self, normalised: Floats) -> Floats:
        """(dims,) in [-1, 1] -> (dims,) float64 in robot units; a writable array of its own."""
        scaled = 0.5 * (normalised + 1) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, scaled, normalised)

    def normalise(self, action: Floats) -> Floats:
        """The map used in training: percentiles to [-1, 1], clipped; dimensions that never move become 0."""
        moving = self.q99 > self.q01
        scaled = 2 * (action - self.q01) / (self.q99 - self.q01 + 1e-8) - 1
        return np.where(self.mask, np.where(moving, np.clip(scaled, -1, 1), 0.0), action)


class Statistics(Mapping[str, ActionStatistics]):
    """All data sets that a checkpoint was trained on, by `unnorm_key`."""

    def __init__(self, raw: object, origin: str) -> None:
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"{origin}: action statistics must be an object by data set, got {raw!r:.60}")
        if not raw:
            raise CheckpointError(
                f"{origin} has no action statistics: expected at least one data set; "
                "put the fine-tuning run's dataset_statistics.json beside the weights"
            )
        self.raw = {key: {"action": _action(entry, f"{origin}, data set {key!r}")} for key, entry in raw.items()}
        self._sets = {key: _parse(self.raw[key]["action"], f"{origin}, data set {key!r}") for key in raw}

    def __getitem__(self, key: str) -> ActionStatistics:
        return self._sets[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def resolve(self, key: str | None) -> str:
        """The key to use: the only one, or the one asked for. Ambiguous or unknown keys raise UsageError."""
        if key is None and len(self) == 1:
            return next(iter(self))
        if key is None:
            raise UsageError(f"this policy knows {len(self)} data sets: pass unnorm_key, one of {sorted(self)}")
        if key not in self:
            raise UsageError(f"unknown unnorm_key {key!r}: choose one of {sorted(self)}")
        return key


def _action(entry: object, where: str) -> dict[str, object]:
    action = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(action, Mapping):
        raise CheckpointError(f"{where}: expected an object with 'action', got {type(entry).__name__}")
    return dict(action)


def _parse(action: Mapping[str, object], where: str) -> ActionStatistics:
    try:
        q01 = np.asarray(action["q01"], dtype=np.float64)
        q99 = np.asarray(action["q99"], dtype=np.float64)
        mask = np.asarray(action.get("mask", np.ones(q01.shape, dtype=bool)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{where}: expected lists of numbers q01 and q99, got {error!r}") from error
    if mask.dtype != np.bool_:
        raise CheckpointError(f"{where}: mask must be a list of true and false, got {action['mask']!r:.60}")
    if q01.ndim != 1 or q01.shape != q99.shape or q01.shape != mask.shape or not len(q01):
        raise CheckpointError(
            f"{where}: q01, q99 and mask must be as long as each other, got {q01.shape}, {q99.shape}, {mask.shape}"
        )
    if not (np.isfinite(q01).all() and np.isfinite(q99).all()):
        raise CheckpointError(f"{where}: q01 and q99 must be finite")
    return ActionStatistics(q01, q99, mask)
