"""What the robots of a study see: pictures of the demo world, each with the tokens that the policy gives for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import edge_vla
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start


@dataclass(frozen=True, eq=False)
class Frame:
    """`tokens` as `policy.act` gives them in this process."""

    image: NDArray[np.uint8]
    instruction: str
    tokens: tuple[int, ...]


def frames(artifact: Path, count: int, size: int = 112) -> list[Frame]:
    """The starts of `count` episodes, (size, size, 3)."""
    policy, found = edge_vla.load(artifact), []
    for seed in EVALUATION_SEEDS[:count]:
        state, task = start(seed, "pick")
        picture = Image.fromarray(np.asarray(render(state, world(1)))).resize((size, size), Image.Resampling.BICUBIC)
        image, instruction = np.asarray(picture), phrase(task, seed)
        found.append(Frame(image, instruction, policy.act(image, instruction).tokens))
    return found
