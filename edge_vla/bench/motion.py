"""What different tokens mean to the robot: actions in its units, the gripper, recorded actions, drift.

Rows are frames, columns action dimensions. The gripper is the last dimension and, as in OpenVLA's training data, open
above half of its range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.bench.result import AgainstRecorded, Drift, Gripper, RobotUnits, UnitError
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
class FrameFacts:
    """What is known of the evaluation frames: rows of every array here and in Predictions."""

    episodes: Sequence[str]
    steps: Sequence[int]
    statistics: Sequence[ActionStatistics]
    dims: Sequence[str]
    recorded: Floats | None  # (frames, dims), robot units
    phase: Sequence[str]

    @classmethod
    def of(cls, frames: Sequence[Frame], statistics: Sequence[ActionStatistics]) -> FrameFacts:
        """Frames without a step count on in the folder's order. `recorded` is None unless every frame has an action."""
        names, width = episodes(frames), statistics[0].dims
        counted: Counter[str] = Counter()
        steps = []
        for frame, name in zip(frames, names, strict=True):
            steps.append(counted[name] if frame.step is None else frame.step)
            counted[name] += 1
        actions = [frame.action for frame in frames]
        complete = all(action is not None and len(action) == width for action in actions)
        recorded = np.array(actions, dtype=np.float64) if complete else None
        dims = NAMES if width == len(NAMES) else tuple(str(dim) for dim in range(width))
        return cls(names, steps, statistics, dims, recorded, phases_by_gripper(names, steps, statistics, recorded))


def phases_by_gripper(
    names: Sequence[str], steps: Sequence[int], statistics: Sequence[ActionStatistics], recorded: Floats | None
) -> list[str]:
    """What the robot was doing at each frame, from the recorded actions.

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


def actions(ids: Ints, facts: FrameFacts, tokens: ActionTokens) -> Floats:
    """(frames, dims) token ids -> robot units."""
    return _stacked(facts.statistics).unnormalise(tokens.decode(ids.ravel().tolist()).reshape(ids.shape))


def robot_units(difference: Floats, facts: FrameFacts) -> RobotUnits:
    """Error of candidate minus reference, (frames, dims) in robot units."""
    size, relative = np.abs(difference), difference / _ranges(facts)
    by_dimension = [
        UnitError(
            mean=float(column.mean()),
            p95=float(np.percentile(column, 95)),
            p99=float(np.percentile(column, 99)),
            max=float(column.max()),
            nrmse=float(np.sqrt((scaled**2).mean())),
        )
        for column, scaled in zip(size.T, relative.T, strict=True)
    ]
    return RobotUnits(nrmse=float(np.sqrt((relative**2).mean(axis=1)).mean()), by_dimension=by_dimension)


def gripper(reference: Floats, candidate: Floats, facts: FrameFacts) -> Gripper:
    """Frames where one opens and the other closes, and how many steps the candidate's changes are off.

    A change of the reference is matched with the nearest one of the candidate in the same direction and episode; one
    that the candidate never makes counts as its whole episode.
    """
    ours, theirs = is_open(reference[:, -1], facts.statistics), is_open(candidate[:, -1], facts.statistics)
    shifts: list[int] = []
    for rows, when in _by_episode(facts.episodes, facts.steps):
        made = _changes(theirs[rows], when)
        for step, opening in _changes(ours[rows], when):
            alike = [abs(other - step) for other, direction in made if direction == opening]
            shifts.append(min(alike, default=int(when[-1] - when[0])))
    return Gripper(
        flips=cluster_interval((ours != theirs).astype(np.float64), facts.episodes, trials=1),
        transitions=len(shifts),
        shift_mean_steps=float(np.mean(shifts)) if shifts else None,
        shift_max_steps=max(shifts, default=None),
        dimension=reference.shape[1] - 1,
    )


def against_recorded(
    reference: Ints, candidate: Ints, facts: FrameFacts, tokens: ActionTokens
) -> AgainstRecorded | None:
    """Both policies' free-running tokens against the recorded actions, and the paired differences.

    Equal means the bin of the recorded action's token; distances are in robot units. None without recorded actions.
    """
    if facts.recorded is None:
        return None
    recorded, wanted = facts.recorded, bins(tokens.encode(_stacked(facts.statistics).normalise(facts.recorded)), tokens)

    ours, theirs = (bins(ids, tokens) == wanted for ids in (reference, candidate))
    errors = [np.abs(actions(ids, facts, tokens) - recorded) for ids in (reference, candidate)]
    return AgainstRecorded(
        candidate=cluster_interval(theirs.mean(axis=1), facts.episodes, trials=theirs.shape[1]),
        reference=cluster_interval(ours.mean(axis=1), facts.episodes, trials=ours.shape[1]),
        equal_difference=paired_cluster_difference(ours, theirs, facts.episodes),
        l1_difference_by_dimension=Clustered(errors[1] - errors[0], facts.episodes).intervals(),
    )


def drift(difference: Floats, facts: FrameFacts) -> list[Drift]:
    """Candidate minus reference (frames, dims) summed over every run of consecutive steps, in ranges q99 - q01.

    `mean` and `p95` are of the sum's length without the gripper, whose command is a state and does not add up. A window
    is left out where no episode has that many consecutive steps.
    """
    relative, found = difference / _ranges(facts), list[Drift]()
    for window in WINDOWS:
        sums = []
        for rows, when in _by_episode(facts.episodes, facts.steps):
            for run in np.split(rows, np.flatnonzero(np.diff(when) != 1) + 1):
                totals = np.cumsum(np.vstack([np.zeros(difference.shape[1]), relative[run]]), axis=0)
                sums.append(totals[window:] - totals[:-window])
        windows = np.concatenate(sums)
        if not len(windows):
            continue
        lengths = np.linalg.norm(windows[:, :-1], axis=1)
        found.append(
            Drift(
                window=window,
                windows=len(windows),
                mean=float(lengths.mean()),
                p95=float(np.percentile(lengths, 95)),
                bias_by_dimension=windows.mean(axis=0).tolist(),
                spread_by_dimension=windows.std(axis=0).tolist(),
            )
        )
    return found


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
    """(frames, dims) statistics, to normalise all frames at once."""
    return ActionStatistics(
        np.stack([one.q01 for one in statistics]),
        np.stack([one.q99 for one in statistics]),
        np.stack([one.mask for one in statistics]),
    )


def _ranges(facts: FrameFacts) -> Floats:
    """(frames, dims) q99 - q01; 1, that is robot units, where a dimension never moves."""
    stacked = _stacked(facts.statistics)
    return np.where(stacked.q99 > stacked.q01, stacked.q99 - stacked.q01, 1.0)
