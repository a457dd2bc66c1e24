"""Which frames an export is calibrated on: stratified over phase and task, and written down.

A phase is what the hand does: moving free, working near something, or opening and closing. Every phase, and within it
every task, gets its share of the set, no more and no less: as many of each phase, however rare, was tried and answers
came out farther from the reference's (benchmarks/LOG.md).
Knows frames and actions; nothing of networks.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np

from edge_vla.calibration.sequences import action_tokens
from edge_vla.data import Frame, episodes
from edge_vla.errors import UsageError
from edge_vla.openvla import PolicyConfig

FEWEST: Final = 8
GRIPPER_MOVED: Final = 0.25  # of the range of the last dimension, between one frame and its neighbour
SLOW: Final = 0.5  # of the recording's median speed: near something

Phase = Literal["gripper", "contact", "free"]


@dataclass(frozen=True)
class CalibrationSet:
    """Frames in the order in which they are used, and each one's phase and identity."""

    frames: tuple[Frame, ...]
    phases: tuple[Phase, ...]
    hashes: tuple[str, ...]  # of what the policy is asked, and the tokens that answer it
    seed: int

    @property
    def sha256(self) -> str:
        """Of the whole set: the same questions and answers in the same order, wherever they lie."""
        return hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()

    def manifest(self, licence: str | None = None) -> dict[str, Any]:
        """What was chosen, for anyone who wants to check it or choose it again."""
        ids = episodes(self.frames)
        return {
            "frames": [
                {"image": frame.image.name, "episode": episode, "step": frame.step, "phase": phase, "sha256": digest}
                for frame, episode, phase, digest in zip(self.frames, ids, self.phases, self.hashes, strict=True)
            ],
            "seed": self.seed,
            "sha256": self.sha256,
            "licence": licence,
        }


def choose(frames: Sequence[Frame], config: PolicyConfig, most: int, seed: int = 0) -> CalibrationSet:
    """At most `most` of `frames`, in proportion to phase and instruction, and over episodes within those.

    Opens no image of a frame that is not chosen. FrameError for a frame without an action or with one that does not
    fit; UsageError for too few.
    """
    if len(frames) < FEWEST or most < FEWEST:
        raise UsageError(f"calibrating on {min(len(frames), most)} frames: give at least {FEWEST}, 128 do well")
    tokens = [action_tokens(frame, config) for frame in frames]
    found = phases_by_speed(frames, config)
    luck = random.Random(seed)  # Mersenne twister: the same everywhere
    ids = episodes(frames)
    shuffled = {name: luck.random() for name in sorted(set(ids))}
    ordered = sorted(range(len(frames)), key=lambda i: (found[i], frames[i].instruction, shuffled[ids[i]], i))
    count = min(most, len(frames))
    chosen = sorted(ordered[(2 * number + 1) * len(frames) // (2 * count)] for number in range(count))
    hashes = [hashlib.sha256(f"{frames[i].sha256()} {tokens[i]}".encode()).hexdigest() for i in chosen]
    return CalibrationSet(tuple(frames[i] for i in chosen), tuple(found[i] for i in chosen), tuple(hashes), seed)


def phases_by_speed(frames: Sequence[Frame], config: PolicyConfig) -> list[Phase]:
    """The phase of each frame, from the recorded actions of its episode; without steps, in the order given.

    `gripper` where its command moves to the next frame or from the last one; elsewhere `contact` where the hand is
    slower than half of the recording's median, and `free`. Benchmarks report by another division, by whether the
    gripper is closed (`benchmarks.motion.phases_by_gripper`): here what matters is that every pace is among the rows.
    """
    ids = episodes(frames)
    order = sorted(range(len(frames)), key=lambda i: (ids[i], frames[i].step or 0, i))
    actions = {i: _normalised(frames[i], config) for i in order}
    speeds = {i: sum(value * value for value in action[:3]) ** 0.5 for i, action in actions.items()}
    near = SLOW * sorted(speeds.values())[len(speeds) // 2]
    moved = set[int]()
    for before, after in pairwise(order):
        if ids[before] == ids[after] and abs(actions[before][-1] - actions[after][-1]) > GRIPPER_MOVED:
            moved |= {before, after}
    return ["gripper" if i in moved else "contact" if speeds[i] < near else "free" for i in range(len(frames))]


def _normalised(frame: Frame, config: PolicyConfig) -> tuple[float, ...]:
    statistics = config.statistics[config.statistics.resolve(frame.unnorm_key)]
    return tuple(statistics.normalise(np.asarray(frame.action, dtype=np.float64)).tolist())
