"""What differing tokens mean to the robot: actions in its units, the gripper, recorded actions, drift.

Rows are frames, columns action dimensions. The gripper is the last dimension and, as in OpenVLA's training data, open
above half of its range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.statistics import Clustered, cluster_interval, paired_cluster_difference
from edge_vla.data import Frame, episodes
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NAMES: Final = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
NEAR_CHANGE: Final = 5  # steps
WINDOWS: Final = (10, 50)  # steps


@dataclass(frozen=True)
class About:
    """The frames that were asked: rows of every array here and in a `Side`."""

    episodes: Sequence[str]
    steps: Sequence[int]
    statistics: Sequence[ActionStatistics]
    dims: Sequence[str]
    recorded: Floats | None  # (frames, dims), robot units
    phase: Sequence[str]

    @classmethod
    def of(cls, frames: Sequence[Frame], statistics: Sequence[ActionStatistics]) -> About:
        """A frame without a step is taken in the folder's order. One frame without its action leaves all without."""
        names, width = episodes(frames), statistics[0].dims
        seen: Counter[str] = Counter()
        steps = []
        for frame, name in zip(frames, names, strict=True):
            steps.append(seen[name] if frame.step is None else frame.step)
            seen[name] += 1
        actions = [frame.action for frame in frames]
        complete = all(action is not None and len(action) == width for action in actions)
        recorded = np.array(actions, dtype=np.float64) if complete else None
        dims = NAMES if width == len(NAMES) else tuple(str(dim) for dim in range(width))
        return cls(names, steps, statistics, dims, recorded, phases_by_gripper(names, steps, statistics, recorded))


def phases_by_gripper(
    names: Sequence[str], steps: Sequence[int], statistics: Sequence[ActionStatistics], recorded: Floats | None
) -> list[str]:
    """What each frame was doing, as far as recorded actions tell.

    `gripper change`: within five steps of the first frame of its episode with the other gripper command. Elsewhere
    `contact` while the gripper is commanded closed, when it holds something or is about to, and `free motion` while
    open. `unknown` without recorded actions.
    """
    if recorded is None:
        return ["unknown"] * len(names)
    opened = is_open(recorded[:, -1], statistics)
    result = np.where(opened, "free motion", "contact").astype(object)
    for rows, when in _by_episode(names, steps):
        changes = when[1:][opened[rows][1:] != opened[rows][:-1]]
        near = (np.abs(when[:, None] - changes) <= NEAR_CHANGE).any(axis=1)
        result[rows[near]] = "gripper change"
    return [str(phase) for phase in result]


def is_open(gripper: Floats, statistics: Sequence[ActionStatistics]) -> Bools:
    """(frames,) robot units -> whether above half-way between the first and 99th percentile."""
    return gripper > np.array([(one.q01[-1] + one.q99[-1]) / 2 for one in statistics])


def actions(ids: Ints, about: About, tokens: ActionTokens) -> Floats:
    """(frames, dims) token ids -> robot units."""
    return _stacked(about.statistics).unnormalise(tokens.decode(ids.ravel().tolist()).reshape(ids.shape))


def robot_units(apart: Floats, about: About) -> dict[str, Any]:
    """A5 of candidate minus reference. The pooled NRMSE is NanoLLM's: a root mean square by frame, then their mean."""
    size, relative = np.abs(apart), apart / _ranges(about)
    by_dimension = [
        {
            "mean": float(column.mean()),
            "p95": float(np.percentile(column, 95)),
            "p99": float(np.percentile(column, 99)),
            "max": float(column.max()),
            "nrmse": float(np.sqrt((scaled**2).mean())),
        }
        for column, scaled in zip(size.T, relative.T, strict=True)
    ]
    return {"by_dimension": by_dimension, "nrmse": float(np.sqrt((relative**2).mean(axis=1)).mean())}


def gripper(reference: Floats, candidate: Floats, about: About) -> dict[str, Any]:
    """A6: frames where one opens and the other closes; and how far the candidate's changes lie from the reference's.

    A change of the reference is matched with the nearest one of the candidate in the same direction and episode; one
    that the candidate never makes counts as far off as its episode is long.
    """
    ours, theirs = is_open(reference[:, -1], about.statistics), is_open(candidate[:, -1], about.statistics)
    shifts: list[int] = []
    for rows, when in _by_episode(about.episodes, about.steps):
        made = _changes(theirs[rows], when)
        for step, opening in _changes(ours[rows], when):
            alike = [abs(other - step) for other, direction in made if direction == opening]
            shifts.append(min(alike, default=int(when[-1] - when[0])))
    return {
        "flips": cluster_interval((ours != theirs).astype(np.float64), about.episodes, trials=1).to_json(),
        "transitions": len(shifts),
        "shift_steps": {"mean": float(np.mean(shifts)), "max": max(shifts)} if shifts else {"mean": None, "max": None},
        "dimension": reference.shape[1] - 1,
    }


def against_recorded(reference: Ints, candidate: Ints, about: About, tokens: ActionTokens) -> dict[str, Any] | None:
    """A10: both sides' free-running tokens against the recorded actions, and the paired differences.

    Equal means the same bin as the recorded action's token has; distances are in robot units.
    """
    if about.recorded is None:
        return None
    normalised = _stacked(about.statistics).normalise(about.recorded)
    wanted = bins(tokens.encode(normalised), tokens)
    equal, errors, result = {}, {}, {}
    for name, ids in (("candidate", candidate), ("reference", reference)):
        apart = np.abs(bins(ids, tokens) - wanted)
        equal[name], errors[name] = apart == 0, np.abs(actions(ids, about, tokens) - about.recorded)
        share = cluster_interval(equal[name].mean(axis=1), about.episodes, trials=ids.shape[1])
        result[name] = {
            "equal": share.to_json(),
            "within_2_by_dimension": (apart <= 2).mean(axis=0).tolist(),
            "l1_by_dimension": errors[name].mean(axis=0).tolist(),
        }
    worse = Clustered(errors["candidate"] - errors["reference"], about.episodes)
    return {
        **result,
        "equal_difference": paired_cluster_difference(equal["reference"], equal["candidate"], about.episodes).to_json(),
        "l1_difference_by_dimension": [one.to_json() for one in worse.intervals()],
    }


def drift(apart: Floats, about: About) -> dict[str, Any]:
    """A11: candidate minus reference summed over every run of consecutive steps, in ranges q99 - q01.

    `mean` and `p95` are of the sum's length without the gripper, whose command is a state and does not add up;
    `bias_by_dimension` is the mean of the sums and `spread_by_dimension` their standard deviation. A window is None
    where no episode has that many consecutive steps.
    """
    relative = apart / _ranges(about)
    result: dict[str, Any] = {}
    for window in WINDOWS:
        sums = []
        for rows, when in _by_episode(about.episodes, about.steps):
            for run in np.split(rows, np.flatnonzero(np.diff(when) != 1) + 1):
                totals = np.cumsum(np.vstack([np.zeros(apart.shape[1]), relative[run]]), axis=0)
                sums.append(totals[window:] - totals[:-window])
        found = np.concatenate(sums)
        lengths = np.linalg.norm(found[:, :-1], axis=1)
        result[str(window)] = (
            None
            if not len(found)
            else {
                "windows": len(found),
                "mean": float(lengths.mean()),
                "p95": float(np.percentile(lengths, 95)),
                "bias_by_dimension": found.mean(axis=0).tolist(),
                "spread_by_dimension": found.std(axis=0).tolist(),
            }
        )
    return result


def bins(ids: Ints, tokens: ActionTokens) -> Ints:
    """(frames, dims) token ids -> index of their centres; ids that decode alike have the same."""
    return tokens.bins(ids.ravel().tolist()).reshape(ids.shape)


def _by_episode(names: Sequence[str], steps: Sequence[int]) -> Iterator[tuple[Ints, Ints]]:
    """Rows of each episode in the order of its steps, and those steps."""
    labels, when = np.asarray(names), np.asarray(steps, dtype=np.int64)
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        rows = rows[np.argsort(when[rows], kind="stable")]
        yield rows, when[rows]


def _changes(opened: Bools, when: Ints) -> list[tuple[int, bool]]:
    """Steps at which the gripper's command became another, and whether it opened."""
    at = np.flatnonzero(opened[1:] != opened[:-1]) + 1
    return [(int(when[place]), bool(opened[place])) for place in at]


def _stacked(statistics: Sequence[ActionStatistics]) -> ActionStatistics:
    """(frames, dims) statistics, which normalise all frames at once."""
    return ActionStatistics(
        np.stack([one.q01 for one in statistics]),
        np.stack([one.q99 for one in statistics]),
        np.stack([one.mask for one in statistics]),
    )


def _ranges(about: About) -> Floats:
    """(frames, dims) q99 - q01; 1 where a dimension never moves, which is then in robot units."""
    stacked = _stacked(about.statistics)
    return np.where(stacked.q99 > stacked.q01, stacked.q99 - stacked.q01, 1.0)
