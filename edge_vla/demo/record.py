"""Recording episodes of the demo world as a folder of frames: picture, instruction and action of every step.

The scripted expert or any policy drives. `benchmarks.demo_policy.record_sets` makes the recorded sets with it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from edge_vla.data import Frame, write_frames
from edge_vla.demo import expert, statistics_key
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import World, render
from edge_vla.demo.rollout import BatchPolicy
from edge_vla.demo.world import Action, State, TaskKind, drive, start


def episode_name(world: int, driver: str, seed: int) -> str:
    return f"world{world}-{driver}-{seed}"


def task_kind(seed: int) -> TaskKind:
    """What a recorded episode asks for: pick for odd seeds, put for even ones."""
    return "pick" if seed % 2 else "put"


def episode(policy: BatchPolicy | None, world: World, seed: int) -> Iterator[tuple[Frame, Image.Image]]:
    """The frames of one episode, driven by the policy or, without one, by the expert."""
    state, task = start(seed, task_kind(seed))
    instruction = phrase(task, seed)
    name = episode_name(world.number, "expert" if policy is None else "policy", seed)
    images = list[Image.Image]()

    def choose(state: State) -> Action:
        images.append(render(state, world))
        return expert.act(state, task) if policy is None else policy.act_batch(images[-1:], [instruction])[0]

    for count, (action, _) in enumerate(drive(state, task, choose)):
        file = Path(f"{name}-{count:02d}.png")
        values = tuple(float(value) for value in action)
        yield Frame(file, instruction, statistics_key(world.number), name, count, values), images[-1]


def record(directory: Path, policy: BatchPolicy | None, world: World, seeds: Sequence[int]) -> int:
    """Write the episodes of `seeds` to a folder; returns the number of frames."""
    shown = [pair for seed in seeds for pair in episode(policy, world, seed)]
    write_frames(directory, shown)
    return len(shown)
