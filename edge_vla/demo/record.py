"""Recording episodes of the demo world into a folder of frames: what was shown, said and done.

Drives the world with the scripted expert or with any policy. The recorded sets that are calibrated and evaluated on are
made by `benchmarks.demo_policy.record_sets`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from edge_vla.data import Frame, write_frames
from edge_vla.demo import expert
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import World, render
from edge_vla.demo.rollout import MAX_STEPS, Answers
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.world import start, step, verdict


def episode_name(look: int, who: str, seed: int) -> str:
    return f"world{look}-{who}-{seed}"


def kind(seed: int) -> Literal["pick", "put"]:
    """What a recorded episode asks for: pick for odd seeds, put for even ones."""
    return "pick" if seed % 2 else "put"


def episode(policy: Answers | None, look: World, seed: int) -> Iterator[tuple[Frame, Image.Image]]:
    """One episode, pick for odd seeds and put for even ones, driven by the policy or, without one, by the expert."""
    state, task = start(seed, kind(seed))
    text = phrase(task, seed)
    named = episode_name(look.number, "expert" if policy is None else "policy", seed)
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
