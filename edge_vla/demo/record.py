"""Recorded episodes of the demo world in the house's frames format, for calibration and benchmarks.

Drives the table with the expert or any policy and keeps what was shown, said and done. An episode belongs to
the train, calibration or evaluation split by a hash of its name, so that splits never share an episode.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from PIL import Image

from edge_vla.demo import expert
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import World, render
from edge_vla.demo.rollout import MAX_STEPS, Answers
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.world import start, step, verdict
from edge_vla.frames import Frame, write_frames

Split = Literal["train", "calibration", "evaluation"]
SHARES: Final[Sequence[tuple[Split, int]]] = (("train", 70), ("calibration", 15), ("evaluation", 15))


def split(episode: str) -> Split:
    """By the episode's name alone."""
    luck = int.from_bytes(hashlib.sha256(episode.encode()).digest()[:4], "big") % 100
    for which, share in SHARES:
        if luck < share:
            return which
        luck -= share
    raise AssertionError("the shares of the splits add up to 100")


def episode(policy: Answers | None, look: World, seed: int) -> Iterator[tuple[Frame, Image.Image]]:
    """One episode, pick for odd seeds and put for even ones, driven by the policy or, without one, by the expert."""
    state, task = start(seed, "pick" if seed % 2 else "put")
    text = phrase(task, seed)
    who = "expert" if policy is None else "policy"
    named = f"world{look.number}-{who}-{seed}"
    for count in range(MAX_STEPS):
        image = render(state, look)
        action = expert.act(state, task) if policy is None else policy.answer([image], [text])[0]
        file = Path(f"{named}-{count:02d}.png")
        values = tuple(float(value) for value in action)
        yield Frame(file, text, statistics_name(look.number), named, count, values), image
        state = step(state, action)
        if verdict(state, task) != "running":
            return


def record(directory: Path, policy: Answers | None, look: World, seeds: Sequence[int]) -> int:
    """Write the episodes of `seeds` to a folder; returns how many frames."""
    shown = [pair for seed in seeds for pair in episode(policy, look, seed)]
    write_frames(directory, shown)
    return len(shown)
