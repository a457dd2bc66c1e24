"""Normalisation statistics: which data set an action belongs to, and the way back to robot units.

Reads `norm_stats` of config.json or a `dataset_statistics.json`, which replaces it wholesale. As upstream, only the
data set that is asked for must be sound: a broken one beside it is refused when its name is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import CheckpointError, UsageError
from edge_vla.suggestions import choose

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
    """The sound data sets that a checkpoint was trained on, by `unnorm_key`.

    `raw` are the same as JSON, with "action" alone; `unsound` says of each other data set what is wrong with it, and
    `strays` are entries that are no data sets at all, such as a count. CheckpointError if no set is sound.
    """

    def __init__(self, raw: object, origin: str) -> None:
        if not isinstance(raw, Mapping):
            got = " ".join(repr(raw).split())  # an array's has lines
            raise CheckpointError(f"{origin}: action statistics must be an object by data set, got {got:.60}")
        if not raw:
            raise CheckpointError(
                f"{origin} has no action statistics: expected at least one data set; "
                "put the fine-tuning run's dataset_statistics.json beside the weights, or name it with --statistics"
            )
        self.raw: dict[str, dict[str, object]] = {}
        self.unsound: dict[str, str] = {}
        self.strays: dict[str, str] = {}
        self._sets: dict[str, ActionStatistics] = {}
        for key, entry in raw.items():
            self._add(key, entry, f"{origin}, data set {key!r}")
        if not self._sets:
            raise CheckpointError(
                _misplaced(raw, origin) or next(iter([*self.unsound.values(), *self.strays.values()]))
            )

    def _add(self, key: str, entry: object, where: str) -> None:
        try:
            action = _action(entry, where)
            self._sets[key] = _parse(action, where)
        except CheckpointError as error:
            (self.unsound if isinstance(entry, Mapping) else self.strays)[key] = str(error)
        else:
            self.raw[key] = {"action": _plain(action, self._sets[key])}

    def __getitem__(self, key: str) -> ActionStatistics:
        return self._sets[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def resolve(self, key: str | None) -> str:
        """The key to use: the only one, or the one asked for.

        UsageError for an ambiguous or unknown key, CheckpointError for a data set that is not sound.
        """
        known = [*self, *self.unsound]
        if key is None and len(known) > 1:
            choices = f"{sorted(self)}" + (f" (not sound: {', '.join(self.unsound)})" if self.unsound else "")
            raise UsageError(f"this policy knows {len(known)} data sets: pass unnorm_key, one of {choices}")
        key = known[0] if key is None else key
        if key in self.unsound:
            raise CheckpointError(f"{self.unsound[key]}: choose another unnorm_key, or give --statistics FILE")
        if key not in self:
            raise UsageError(f"unknown unnorm_key {key!r}: {choose(key, sorted(self))}")
        return key


def _misplaced(raw: Mapping[str, object], origin: str) -> str | None:
    """What to do with statistics that lie one level too high or too deep; None if they lie nowhere."""
    if _is_set(raw):
        return (
            f"{origin} holds the statistics of one data set without its name, as training caches them: put them under "
            'a name, {"NAME": {"action": …}}'
        )
    for key, entry in raw.items():
        if isinstance(entry, Mapping) and any(map(_is_set, entry.values())):
            return f"{origin} holds its data sets inside {key!r}: keep what {key!r} holds alone, {{NAME: …, NAME: …}}"
    return None


def _is_set(entry: object) -> bool:
    action = entry.get("action") if isinstance(entry, Mapping) else None
    return isinstance(action, Mapping) and {"q01", "q99"} <= set(action)


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
    if mask.dtype.kind not in "biuf":  # numbers count as upstream's `np.where(mask, ...)` counts them
        raise CheckpointError(f"{where}: mask must be a list of true and false, got {action['mask']!r:.60}")
    if q01.ndim != 1 or q01.shape != q99.shape or q01.shape != mask.shape or not len(q01):
        raise CheckpointError(
            f"{where}: q01, q99 and mask must be as long as each other, got {q01.shape}, {q99.shape}, {mask.shape}"
        )
    if not (np.isfinite(q01).all() and np.isfinite(q99).all()):
        raise CheckpointError(f"{where}: q01 and q99 must be finite")
    return ActionStatistics(q01, q99, mask != 0)


def _plain(action: Mapping[str, object], parsed: ActionStatistics) -> dict[str, object]:
    """As JSON can hold it: without what nothing reads and is no number, and the mask as true and false."""
    kept = {key: value for key, value in action.items() if key in ("q01", "q99", "mask") or _is_json(value)}
    masked = np.asarray(kept.get("mask", parsed.mask))
    return kept if masked.dtype == np.bool_ else {**kept, "mask": parsed.mask.tolist()}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
