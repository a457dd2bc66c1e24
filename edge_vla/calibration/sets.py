"""Which frames an export is calibrated on: stratified over phase and task, and recorded.

A phase is what the hand does: move freely, work near something, or open and close. Every phase, and within it every
task, gets its proportional share of the set: equal numbers of each phase, however rare, were tried and moved the
policy farther from the reference (benchmarks/LOG.md).
Knows frames and actions; nothing of networks.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from edge_vla.calibration.sequences import action_tokens
from edge_vla.data import Frame, check_pictures, check_recorded, episodes
from edge_vla.errors import UsageError
from edge_vla.openvla import PolicyConfig

MIN_FRAMES: Final = 8
GRIPPER_MOVED: Final = 0.25  # of the range of the last dimension, between one frame and its neighbour
SLOW: Final = 0.5  # of the recording's median speed

Phase = Literal["gripper", "contact", "free"]


@dataclass(frozen=True)
class CalibrationSet:
    """Frames in the order of their use, and each one's phase and identity."""

    frames: tuple[Frame, ...]
    phases: tuple[Phase, ...]
    hashes: tuple[str, ...]  # of the image, the instruction as it was typed, and the tokens of the recorded action
    asked: tuple[str, ...]  # the same with the instruction in lower case, as a prompt has it
    seed: int

    @property
    def sha256(self) -> str:
        """Of the whole set: the same frames and actions in the same order, wherever the files are."""
        return hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `evidence/calibration.json`: what was chosen, to be checked or chosen again."""
        ids = episodes(self.frames)
        frames = [
            {
                **{"image": frame.image.name, "episode": episode, "step": frame.step, "phase": phase},
                **{"sha256": digest, "asked": asked},
            }
            for frame, episode, phase, digest, asked in zip(
                self.frames, ids, self.phases, self.hashes, self.asked, strict=True
            )
        ]
        return json.dumps({"frames": frames, "seed": self.seed, "sha256": self.sha256}, indent=1)


def choose(frames: Sequence[Frame], config: PolicyConfig, limit: int, seed: int = 0) -> CalibrationSet:
    """At most `limit` of `frames`, in proportion to phase and instruction, and spread over episodes within those.

    Opens no image of a frame that is not chosen. FrameError for a frame without an action or with one that does not
    fit, or for actions in another convention; UsageError for too few frames.
    """
    if len(frames) < MIN_FRAMES or limit < MIN_FRAMES:
        raise UsageError(
            f"got {min(len(frames), limit)} frames to calibrate on, expected at least {MIN_FRAMES}: give more with "
            "--frames and --calibration-frames; 128 work well"
        )
    tokens = [action_tokens(frame, config) for frame in frames]
    statistics = config.statistics
    check_recorded(frames, [statistics.resolve(frame.unnorm_key) for frame in frames], statistics)
    phases = phases_by_speed(frames, config)
    rng = random.Random(seed)  # Mersenne twister: the same everywhere
    ids = episodes(frames)
    shuffled = {name: rng.random() for name in sorted(set(ids))}
    ordered = sorted(range(len(frames)), key=lambda i: (phases[i], frames[i].instruction, shuffled[ids[i]], i))
    count = min(limit, len(frames))
    chosen = sorted(ordered[(2 * number + 1) * len(frames) // (2 * count)] for number in range(count))
    check_pictures([frames[i] for i in chosen])
    return CalibrationSet(
        frames=tuple(frames[i] for i in chosen),
        phases=tuple(phases[i] for i in chosen),
        hashes=tuple(frame_hash(frames[i], frames[i].instruction, tokens[i]) for i in chosen),
        asked=tuple(frame_hash(frames[i], frames[i].instruction.lower(), tokens[i]) for i in chosen),
        seed=seed,
    )


def frame_hash(frame: Frame, instruction: str, tokens: tuple[int, ...]) -> str:
    """Of a frame's image, an instruction and the tokens of its action."""
    return hashlib.sha256(f"{frame.sha256(instruction)} {tokens}".encode()).hexdigest()


def phases_by_speed(frames: Sequence[Frame], config: PolicyConfig) -> list[Phase]:
    """The phase of each frame from the recorded actions of its episode; without steps, in the order given.

    `gripper` where its command changes towards a neighbouring frame; else `contact` where the hand is slower than half
    of the recording's median speed, and `free` elsewhere. The bench reports by another division, by whether the
    gripper is closed (`edge_vla.bench.motion`): here every pace must be among the rows.
    """
    ids = episodes(frames)
    order = sorted(range(len(frames)), key=lambda i: (ids[i], frames[i].step or 0, i))
    actions = {i: _normalised(frames[i], config) for i in order}
    speeds = {i: sum(value * value for value in action[:3]) ** 0.5 for i, action in actions.items()}
    slow = SLOW * sorted(speeds.values())[len(speeds) // 2]
    changed = set[int]()
    for before, after in pairwise(order):
        if ids[before] == ids[after] and abs(actions[before][-1] - actions[after][-1]) > GRIPPER_MOVED:
            changed |= {before, after}
    return ["gripper" if i in changed else "contact" if speeds[i] < slow else "free" for i in range(len(frames))]


def _normalised(frame: Frame, config: PolicyConfig) -> tuple[float, ...]:
    statistics = config.statistics[config.statistics.resolve(frame.unnorm_key)]
    return tuple(statistics.normalise(np.asarray(frame.action, dtype=np.float64)).tolist())
